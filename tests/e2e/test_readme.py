"""The README's commands, as a reader would type them, in a house of its own ports; and the command line beside them.

The tests stand in the reader's order: what is said of one concept stands before the second one is learned.
"""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.house import SAMPLES, House

ROOT = Path(__file__).parents[2]
BLOCKS = [
    [line for line in block.splitlines() if line]
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
]
QUICK = {"palimpsest learn": " --steps 24", "-m cp_train": " --steps 24 --fisher-batches 4 --batch-size 4"}
LINEAGE = "default"


def test_the_readme_has_the_commands_that_are_tested() -> None:
    first, second = BLOCKS
    assert [shlex.split(line)[:2] for line in first] == [["palimpsest", name] for name in ("up", "learn", "generate")]
    assert len(second) >= 6
    assert all(any(name in line for name in ("palimpsest", "ray job", "curl")) for line in second)


class Reader:
    """Somebody at a terminal of this house, in a folder that sees the bundled samples; `down` is left to the end."""

    def __init__(self, house: House, folder: Path) -> None:
        self.house, self.folder = house, folder
        (folder / "infra").symlink_to(ROOT / "infra")
        self.said: dict[str, str] = {}

    def follow(self, block: Sequence[str]) -> "Reader":
        """Run the lines of a block, one after the other."""
        for line in block:
            if line != "palimpsest down":
                self._run(line)
        return self

    def _run(self, line: str) -> None:
        """With this house's ports and fewer steps; the next line waits until the effect of this one is served."""
        command, settings = line, self.house.settings
        for port, ours in ((8265, settings.dashboard_port), (8000, settings.http_port), (5000, settings.mlflow_port)):
            command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ours}")
        for mark, flags in QUICK.items():
            command += flags if mark in command else ""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.house.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        self.said[line] = done.stdout
        live = self.house.client.lineage(LINEAGE)["live"] if shlex.split(line)[1] != "up" else None
        if live:
            self.house.serves(LINEAGE, live)


@pytest.fixture(scope="module")
def first(house: House, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """After the first concept."""
    return Reader(house, tmp_path_factory.mktemp("reader")).follow(BLOCKS[0])


@pytest.fixture(scope="module")
def second(first: Reader) -> Reader:
    """After the second one, and back and forth."""
    return first.follow(BLOCKS[1])


def test_learning_shows_its_progress_and_its_end(first: Reader) -> None:
    (said,) = [said for line, said in first.said.items() if line.startswith("palimpsest learn")]
    assert "step 10/24" in said
    assert f"learned: <robot> is in {LINEAGE}@1." in said
    assert "RayTrainWorker" not in said


def test_the_first_concept_is_drawn_into_files_named_by_version_and_seed(first: Reader) -> None:
    pictures = sorted((first.folder / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"{LINEAGE}-1-{seed}.png" for seed in range(4)]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)


def test_status_says_what_is_up(house: House) -> None:
    assert house.run("palimpsest", "status").stdout.split() == ["mlflow", "up", "ray", "up", "serve", "up"]


def test_up_again_changes_nothing(house: House, first: Reader) -> None:
    before = house.client.ready()
    assert house.run("palimpsest", "up").returncode == 0
    assert house.client.ready() == before


def test_concepts_versions_and_lineages(house: House, first: Reader) -> None:
    assert house.run("palimpsest", "concepts").stdout == "<robot>\n"
    assert house.run("palimpsest", "versions").stdout == "1  <robot>  ewc_dc_kv  [live]\n"
    assert f"{LINEAGE}  1 version\n" in house.run("palimpsest", "lineages").stdout


def test_classify_says_how_likely_each_concept_and_none_is(house: House, first: Reader) -> None:
    done = house.run("palimpsest", "classify", str(SAMPLES / "robot" / "robot-3d.png"), "--trials", "4")
    assert done.returncode == 0, done.stderr
    found = dict(reversed(line.split()) for line in done.stdout.splitlines())
    assert found.keys() == {"<robot>", "none"}
    assert sum(float(share.rstrip("%")) for share in found.values()) == pytest.approx(100, abs=0.2)


def test_history_tells_who_promoted(house: House, first: Reader) -> None:
    done = house.run("palimpsest", "history")
    assert done.returncode == 0, done.stderr
    assert "live nothing -> 1 by a job of" in done.stdout


def test_the_doctor_finds_no_fault(house: House, first: Reader) -> None:
    done = house.run("palimpsest", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for server in ("mlflow answers", "ray answers", "the HTTP API is ready"):
        assert f"ok      {server}" in done.stdout


def test_export_writes_what_other_tools_load(house: House, first: Reader, tmp_path: Path) -> None:
    done = house.run("palimpsest", "export", "live", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors"))
    assert found == ["embeddings/robot.safetensors", "kohya.safetensors", "pytorch_lora_weights.safetensors"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("generate", "a <cat>"), "<cat> is not a concept of this version (it knows: <robot>)"),
        (("generate", "a cat", "--lineage", "nobody"), "no lineage `nobody`"),
        (("generate", "a cat", "--lineage", f"{LINEAGE}@9"), "no version 9"),
        (("promote", "9"), "no version 9"),
        (("rollback",), "no parent to go back to"),
        (("versions", "--lineage", "nobody"), "no lineage `nobody`"),
        (("export", "7"), "has no version '7'"),
        (("classify", "missing.png"), "'missing.png' cannot be read (No such file or directory)"),
        (("learn", "Robot", str(SAMPLES / "robot"), "--noun", "robot"), "'Robot' is not a name"),
        (("learn", "other", str(SAMPLES / "robot"), "--noun", "robot", "--method", "magic"), "there is no 'magic'"),
        (("learn", "robot", str(SAMPLES / "robot")), "the following arguments are required: --noun"),
        (("lern",), "invalid choice: 'lern'"),
        (
            ("learn", "robot", "missing.png", "--noun", "robot"),
            "'missing.png' cannot be read (No such file or directory)",
        ),
    ],
)
def test_every_mistake_is_one_clear_line(house: House, first: Reader, command: tuple[str, ...], says: str) -> None:
    done = house.run("palimpsest", *command)
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert any(says in line for line in lines), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_second_concept_is_drawn_over_plain_http(second: Reader) -> None:
    assert f'"model":"{LINEAGE}@2"' in (second.folder / "answer.json").read_text()


def test_back_and_forth_ends_at_version_2(house: House, second: Reader) -> None:
    assert f"{LINEAGE}: live is version 1 (was 2)\n" in second.said.values()
    assert f"{LINEAGE}: live is version 2 (was 1)\n" in second.said.values()
    assert house.client.lineage(LINEAGE)["live"] == 2
