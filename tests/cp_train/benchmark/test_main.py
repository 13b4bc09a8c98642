"""The command, from its flags to the report."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from cp_train.benchmark.__main__ import CHOSEN, main
from cp_train.benchmark.results import LEADING


@pytest.fixture
def flags(tiny_folders: Mapping[str, Path], judge_folder: Path, tmp_path: Path) -> list[str]:
    values = {
        "base": tiny_folders["epsilon"],
        "features": judge_folder,
        "steps": 2,
        "batch-size": 2,
        "rank": 2,
        "fisher-batches": 1,
        "pictures": 8,
        "drawing-steps": 2,
        "limit": 2,
        "threads": 1,
        "jobs": 1,
        "output": tmp_path / "out",
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def test_two_methods_on_two_concepts_with_a_report(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [*flags, "--setup", "two-in-one-prompt", "--methods", "finetune", "clora_shared", "--orders", "2"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.md")
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert tuple(rows[0])[: len(LEADING)] == LEADING
    assert all(float(row["pair_MMD"]) > 0 for row in rows)
    text = (out / "report.md").read_text("utf-8")
    for title in ("## Setup `two-in-one-prompt`", "### Two concepts in one prompt", "## Doubts", "Wall-clock against"):
        assert title in text
    linked = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert linked
    for link in linked:
        with Image.open(out / link) as picture:
            assert picture.width > 0
    first = (out / "results.csv").read_bytes()
    assert main([*arguments, "--report"]) == 0
    assert (out / "results.csv").read_bytes() == first


def test_a_sweep_chooses_and_later_runs_use_it(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*flags, "--sweep", "--orders", "1", "--methods", "finetune"]) == 0
    chosen = json.loads((out / CHOSEN).read_text("utf-8"))
    assert chosen.keys() == {"finetune"}
    assert "## Hyper-parameters" in (out / "report.md").read_text("utf-8")
    assert main([*flags, "--methods", "finetune", "--orders", "1"]) == 0
    told = json.loads((out / "six/order0-seed0/finetune/run.json").read_text("utf-8"))
    assert told["learning"]["loop.lr"] == chosen["finetune"]["loop.lr"]


def test_own_folders_take_the_place_of_the_artwork(flags: list[str], tmp_path: Path) -> None:
    for name, colour in (("mug", "red"), ("dog6", "blue")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        Image.new("RGB", (50, 40), colour).save(tmp_path / "mine" / name / "1.png")
    assert main([*flags, "--images", str(tmp_path / "mine"), "--methods", "finetune", "--orders", "1"]) == 0
    told = json.loads((tmp_path / "out/six/order0-seed0/finetune/run.json").read_text("utf-8"))
    assert dict(zip(told["concepts"], told["nouns"], strict=True)) == {"mug": "mug", "dog6": "dog"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--setup", "seven"], "setup: there is no 'seven'"),
        (["--methods", "magic"], "there is no 'magic'"),
        (["--images", "nowhere"], "images: 'nowhere' is not a folder"),
        (["--seeds", "0"], "seeds, orders, jobs and limit must be at least 1"),
        (["--pictures", "5"], "pictures must be a multiple of 4"),
        (["--base", "nowhere/at/all"], "base: 'nowhere/at/all'"),
        (["--features", "nowhere/at/all"], "features: 'nowhere/at/all'"),
        (["--rank", "0", "--methods", "ewc"], "rank must be from 1"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], said: str
) -> None:
    assert main([*flags, *wrong]) == 1
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert error.startswith("error: ")


def test_runs_at_once_end_like_runs_in_turn(flags: list[str], tmp_path: Path) -> None:
    both = [*flags, "--methods", "finetune", "textual_inversion", "--orders", "1"]
    assert main(both) == 0
    assert main([*both, "--jobs", "2", "--output", str(tmp_path / "parallel")]) == 0
    assert "RAY_AUTH_MODE" not in os.environ, "the cluster's settings are gone with it"

    def figures(folder: Path) -> list[dict[str, str]]:
        with (folder / "results.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if "seconds" not in k and "memory" not in k} for row in rows]

    assert figures(tmp_path / "parallel") == figures(tmp_path / "out")
