"""The command, from its flags to the report."""

import csv
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from cp_train.benchmark import agenda
from cp_train.benchmark.__main__ import main
from cp_train.benchmark.agenda import Item
from cp_train.benchmark.results import LEADING
from cp_train.benchmark.settings import BUDGETS
from cp_train.benchmark.store import alone
from cp_train.benchmark.sweep import CHOSEN, at_the_edge


@pytest.fixture
def flags(tiny_folders: Mapping[str, Path], judge_folder: Path, tmp_path: Path) -> list[str]:
    values = {
        "base": tiny_folders["epsilon"],
        "features": judge_folder,
        "steps": 2,
        "batch-size": 2,
        "rank": 2,
        "fisher-batches": 1,
        "pictures": 4,
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
    for title in (
        "## What was expected",
        "## Setup `two-in-one-prompt`",
        "### Two concepts in one prompt",
        "## Doubts",
        "Wall-clock against",
    ):
        assert title in text
    assert f"python -m cp_train.benchmark {shlex.join(arguments)}\n" in text
    assert "| two-in-one-prompt | 2 | 0–1 | 0 | 4 |" in text
    check_links(out / "report.md")
    first = (out / "results.csv").read_bytes()
    docs = tmp_path / "docs" / "benchmark.md"
    (docs.parent / "benchmark" / "learning" / "plots").mkdir(parents=True)
    (docs.parent / "benchmark" / "learning" / "plots" / "of-an-earlier-run.png").touch()
    capsys.readouterr()
    assert main([*arguments, "--report", "--publish", str(docs)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "report.md"), str(docs)]
    assert (
        (out / "results.csv").read_bytes()
        == (docs.parent / "benchmark" / "learning" / "results.csv").read_bytes()
        == first
    )
    check_links(docs)
    kept = {path.relative_to(docs.parent).as_posix() for path in docs.parent.glob("*/**/*") if path.is_file()}
    assert kept == set(links(docs)), "nothing but what the report shows"
    assert "--report" not in docs.read_text("utf-8"), "the command that made the runs is told, not this one"


def links(report: Path) -> list[str]:
    """What a report links to."""
    return [part.partition(")")[0] for part in report.read_text("utf-8").split("](")[1:]]


def check_links(report: Path) -> None:
    """Pictures are pictures, and there are some."""
    pictures = [link for link in links(report) if link.endswith(".png")]
    assert len(pictures) > 5
    for link in pictures:
        with Image.open(report.parent / link) as picture:
            assert picture.width > 0
    assert all((report.parent / link).is_file() for link in links(report))


def test_a_budget_decides_what_is_not_given(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--budget", "brief", "--methods", "dsc", "--orders", "1"]) == 0
    told = json.loads((tmp_path / "out/six/order0-seed0/dsc/run.json").read_text("utf-8"))
    assert (told["learning"]["dsc.steps"], told["learning"]["loop.precision"]) == (
        BUDGETS["brief"].dsc_steps,
        "bfloat16",
    )
    assert told["learning"]["loop.steps"] == 2, "given"
    examination = told["examination"]
    assert (examination["precision"], examination["steps"], examination["pictures"]) == ("bfloat16", 2, 4)


def test_everything_is_one_item_after_the_other_and_continues(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = (
        Item(setup="tuning", methods=("textual_inversion",), orders=1, sweep=True),
        Item(setup="six", methods=("textual_inversion", "finetune"), orders=1),
        Item(setup="two-in-one-prompt", methods=("finetune",), orders=1),
    )
    monkeypatch.setattr(agenda, "AGENDAS", {"full": short})
    assert main([*flags, "--setup", "everything"]) == 0
    out = tmp_path / "out"
    chosen = json.loads((out / CHOSEN).read_text("utf-8"))
    told = json.loads((out / "six/order0-seed0/textual_inversion/run.json").read_text("utf-8"))
    assert told["learning"]["loop.token_lr"] == chosen["textual_inversion"]["loop.token_lr"]
    assert (out / "two-in-one-prompt/order0-seed0/finetune/task-02").is_dir()
    first = (out / "results.csv").read_bytes()
    shutil.rmtree(out / "six/order0-seed0/finetune/task-02")
    assert main([*flags, "--setup", "everything"]) == 0
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 + 2 + 1
    assert without_clocks(first.decode()) == without_clocks((out / "results.csv").read_text("utf-8"))
    assert (out / "commands.txt").read_text("utf-8").count("\n") == 1, "the same command is one"
    assert main([*flags, "--setup", "everything", "--methods", "ewc"]) == 1
    assert "everything has its own methods" in capsys.readouterr().err


def test_a_sweep_chooses_and_later_runs_use_it(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*flags, "--sweep", "--orders", "1", "--methods", "finetune"]) == 0
    chosen = json.loads((out / CHOSEN).read_text("utf-8"))
    assert chosen.keys() == {"finetune"}
    assert "## Hyper-parameters" in (out / "report.md").read_text("utf-8")
    assert main([*flags, "--methods", "finetune", "--orders", "1"]) == 0
    told = json.loads((out / "six/order0-seed0/finetune/run.json").read_text("utf-8"))
    assert told["learning"]["loop.lr"] == chosen["finetune"]["loop.lr"]
    (out / CHOSEN).write_text(json.dumps({"finetune": {"loop.lr": 0.5}}), "utf-8")
    shutil.rmtree(out / "tuning")
    assert main([*flags, "--sweep", "--orders", "1", "--methods", "custom_diffusion_merge", "ewc", "finetune"]) == 0
    again = json.loads((out / CHOSEN).read_text("utf-8"))
    assert again.keys() == {"finetune", "ewc", "custom_diffusion_merge"}
    assert again["finetune"] == {"loop.lr": 0.5}, "a choice stands"
    weight = again["ewc"]["weight"]
    told = json.loads((out / f"tuning/order0-seed0/ewc:weight={json.dumps(weight)}/run.json").read_text("utf-8"))
    assert told["learning"]["loop.lr"] == 0.5, "what it is composed of was chosen before"
    assert "**, at the edge" in (out / "report.md").read_text("utf-8") or not at_the_edge("ewc", again["ewc"])


def test_two_comparisons_in_one_folder_are_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(tmp_path / "out"):
        assert main([*flags, "--methods", "finetune", "--orders", "1"]) == 1
    assert "another comparison is at work in it" in capsys.readouterr().err
    assert not (tmp_path / "out" / "six").exists()


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
        (["--images", "nowhere", "--sweep"], "images: settings chosen on them could not be reported on them"),
        (["--seeds", "0"], "seeds, orders, jobs and limit must be at least 1"),
        (["--pictures", "5"], "pictures must be a multiple of 4"),
        (["--budget", "endless"], "budget: there is no 'endless'; choose full or brief"),
        (["--publish", "docs"], "publish: 'docs' must be a file that ends in .md"),
        (["--precision", "float8"], "precision must be float32 or bfloat16"),
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


def without_clocks(table: str) -> list[dict[str, str]]:
    """The rows of `results.csv` but for what depends on the moment."""
    rows = csv.DictReader(table.splitlines())
    return [{k: v for k, v in row.items() if "seconds" not in k and "memory" not in k} for row in rows]


def test_runs_at_once_end_like_runs_in_turn(flags: list[str], tmp_path: Path) -> None:
    both = [*flags, "--methods", "finetune", "textual_inversion", "--orders", "1"]
    assert main(both) == 0
    assert main([*both, "--jobs", "2", "--output", str(tmp_path / "parallel")]) == 0
    assert "RAY_AUTH_MODE" not in os.environ, "the cluster's settings are gone with it"

    in_turn, at_once = ((tmp_path / name / "results.csv").read_text("utf-8") for name in ("out", "parallel"))
    assert without_clocks(at_once) == without_clocks(in_turn)
