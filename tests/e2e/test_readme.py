"""The README's commands, as a reader would type them, against a house of its own ports."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.house import House

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
QUICK = {"palimpsest learn": " --steps 12", "-m cp_train": " --steps 12 --fisher-batches 4"}


def test_the_readme_has_the_commands_that_are_tested() -> None:
    assert len(COMMANDS) >= 8
    assert all(any(name in command for name in ("palimpsest", "ray job", "curl")) for command in COMMANDS)


@pytest.fixture(scope="module")
def folder(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every command run in order, in a folder that sees the bundled samples; `down` is left to the session's end."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "infra").symlink_to(ROOT / "infra")
    for command in COMMANDS:
        if command != "palimpsest down":
            _run(house, command, folder)
    return folder


def _run(house: House, command: str, folder: Path) -> None:
    """A reader's line, with this house's ports and fewer steps; the next line waits until its effect is served."""
    settings = house.settings
    for port, ours in ((8265, settings.dashboard_port), (8000, settings.http_port), (5000, settings.mlflow_port)):
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ours}")
    for mark, flags in QUICK.items():
        command += flags if mark in command else ""
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=house.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    live = house.client.lineage("default")["live"] if shlex.split(command)[1] != "up" else None
    if live:
        house.serves("default", live)


def test_the_first_concept_is_drawn_into_files(folder: Path) -> None:
    pictures = sorted((folder / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"default-1-{seed}.png" for seed in range(4)]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)


def test_the_second_concept_is_drawn_over_plain_http(folder: Path) -> None:
    assert '"model":"default@2"' in (folder / "answer.json").read_text()


def test_the_lineage_ends_at_version_2(house: House, folder: Path) -> None:
    assert house.client.lineage("default")["live"] == 2
