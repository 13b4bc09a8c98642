"""The command `palimpsest` against the running house, as a person uses it."""

from pathlib import Path

import pytest
from PIL import Image

from tests.house import QUICK, SAMPLES, House

LINEAGE = "terminal"


@pytest.fixture(scope="module", autouse=True)
def learned(house: House) -> None:
    done = house.run(
        "palimpsest", "learn", "robot", str(SAMPLES / "robot"), "--noun", "robot", "--lineage", LINEAGE, *QUICK[:2]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 10/12" in done.stdout
    assert f"learned: <robot> is in {LINEAGE}@1." in done.stdout
    assert "RayTrainWorker" not in done.stdout
    house.serves(LINEAGE, 1)


def test_status_says_what_is_up(house: House) -> None:
    assert house.run("palimpsest", "status").stdout.split() == ["mlflow", "up", "ray", "up", "serve", "up"]


def test_up_again_changes_nothing(house: House) -> None:
    before = house.client.ready()
    assert house.run("palimpsest", "up").returncode == 0
    assert house.client.ready() == before


def test_generate_writes_pictures_named_by_version_and_seed(house: House, tmp_path: Path) -> None:
    done = house.run(
        *("palimpsest", "generate", "a photo of a <robot>", "--lineage", LINEAGE),
        *("-n", "2", "--seed", "5", "-o", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{LINEAGE}-1-{seed}.png" for seed in (5, 6)]
    with Image.open(tmp_path / f"{LINEAGE}-1-5.png") as picture:
        assert picture.size == (64, 64)


def test_concepts_and_versions(house: House) -> None:
    assert house.run("palimpsest", "concepts", "--lineage", LINEAGE).stdout == "<robot>\n"
    assert house.run("palimpsest", "versions", "--lineage", LINEAGE).stdout == "1  <robot>  ewc_dc  [live]\n"


def test_history_tells_who_promoted(house: House) -> None:
    done = house.run("palimpsest", "history", "--lineage", LINEAGE)
    assert done.returncode == 0, done.stderr
    assert "live nothing -> 1 by a job of" in done.stdout


def test_the_doctor_finds_no_fault(house: House) -> None:
    done = house.run("palimpsest", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for server in ("mlflow answers", "ray answers", "the HTTP API is ready"):
        assert f"ok      {server}" in done.stdout


def test_export_writes_what_other_tools_load(house: House, tmp_path: Path) -> None:
    done = house.run("palimpsest", "export", "live", "--lineage", LINEAGE, "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors"))
    assert found == ["embeddings/robot.safetensors", "kohya.safetensors", "pytorch_lora_weights.safetensors"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("generate", "a <cat>", "--lineage", LINEAGE), "<cat> is not a concept of this version (it knows: <robot>)"),
        (("generate", "a cat", "--lineage", "nobody"), "no lineage `nobody`"),
        (("generate", "a cat", "--lineage", f"{LINEAGE}@9"), "no version 9"),
        (("promote", "9", "--lineage", LINEAGE), "no version 9"),
        (("rollback", "--lineage", LINEAGE), "no parent to go back to"),
        (("versions", "--lineage", "nobody"), "no lineage `nobody`"),
        (("export", "7", "--lineage", LINEAGE), "has no version '7'"),
        (("learn", "Robot", str(SAMPLES / "robot"), "--noun", "robot"), "'Robot' is not a name"),
        (("learn", "robot", str(SAMPLES / "robot"), "--noun", "robot", "--method", "magic"), "there is no 'magic'"),
        (("learn", "robot", str(SAMPLES / "robot")), "the following arguments are required: --noun"),
        (("lern",), "invalid choice: 'lern'"),
        (
            ("learn", "robot", "missing.png", "--noun", "robot"),
            "'missing.png' cannot be read (No such file or directory)",
        ),
    ],
)
def test_every_mistake_is_one_clear_line(house: House, command: tuple[str, ...], says: str) -> None:
    done = house.run("palimpsest", *command)
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert any(says in line for line in lines), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
