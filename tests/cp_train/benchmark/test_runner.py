"""Runs on a tiny base: every method goes through, and what was killed is continued with the same result."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cp_train.benchmark import learner, results, runner
from cp_train.benchmark.contenders import parse
from cp_train.benchmark.settings import Settings
from cp_train.benchmark.setups import SETUPS
from cp_train.benchmark.subjects import Subject
from cp_train.methods import METHODS
from services.base_model import BaseModel
from services.errors import ConflictError
from tests.bases import some_adapter

SIX = SETUPS["six"]
CLOCKS = {"seconds", "cpu_seconds", "peak_mb", "examination_seconds"}


def runs(root: Path, subjects: list[Subject], settings: Settings, *methods: str) -> list[runner.Run]:
    return runner.plan(root, SIX, parse(methods), subjects, settings, orders=1, seeds=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through(tmp_path: Path, subjects: list[Subject], brief: Settings, method: str) -> None:
    assert runner.make(runs(tmp_path, subjects, brief, method), jobs=1) == []
    (row,) = [result.row() for result in results.load(tmp_path)]
    assert row["method"] == method
    assert row["A_MMD"] > 0
    assert (row["F_MMD"] is None) == METHODS[method].replays
    assert row["trained_percent"] > 0
    assert row["seconds_per_task"] > 0
    assert row["base_drift"] > 0 or METHODS[method].token_only or METHODS[method].alone


def test_runs_come_seed_and_order_first(tmp_path: Path, subjects: list[Subject], brief: Settings) -> None:
    planned = runner.plan(tmp_path, SIX, parse(["ewc", "kv"]), subjects, brief, orders=2, seeds=2)
    assert [(run.cell.seed, run.cell.order, run.cell.label) for run in planned[:3]] == [
        (0, 0, "ewc"),
        (0, 0, "kv"),
        (0, 1, "ewc"),
    ]
    assert len(planned) == 8
    assert planned[0].subjects == planned[1].subjects == planned[4].subjects != planned[2].subjects


def test_contenders_share_their_draws_and_orders_and_seeds_do_not(
    tmp_path: Path, subjects: list[Subject], brief: Settings
) -> None:
    planned = runner.plan(tmp_path, SIX, parse(["ewc", "kv"]), subjects, brief, orders=3, seeds=3)
    seeds = {(run.cell.paired, n): runner.task_seed(run.cell, n) for run in planned for n in range(1, 51)}
    assert len(set(seeds.values())) == len(seeds) == 9 * 50
    assert runner.run_seed(planned[0].cell) == runner.run_seed(planned[1].cell)


def test_the_first_task_is_the_same_for_all_that_protect_nothing_yet(
    tmp_path: Path, subjects: list[Subject], brief: Settings
) -> None:
    methods = ("finetune", "clora", "ewc_dc", "dsc")
    runner.make(runs(tmp_path, subjects, replace(brief, limit=1), *methods), jobs=1)
    losses = {run.cell.label: run.records[1].figures["training_losses"] for run in results.load(tmp_path)}
    assert losses.keys() == set(methods)
    assert len({tuple(each) for each in losses.values()}) == 1


def test_fifty_tasks_forget_some_of_what_mattered(tmp_path: Path, subjects: list[Subject], brief: Settings) -> None:
    (run,) = runner.plan(tmp_path, SETUPS["fifty"], parse(["ewc_dc"]), subjects, brief, orders=1, seeds=1)
    assert runner.make([run], jobs=1) == []
    assert run.cell.told()["learning"]["fisher.gamma"] == 0.95


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_at(task: int, do: Callable[..., learner.Learned]) -> Callable[..., learner.Learned]:
    """`learn`, which does not return from the given task on."""

    def learn(*args: object, **options: object) -> learner.Learned:
        if len(args[2]) >= task:  # type: ignore[arg-type]
            raise KilledError
        return do(*args, **options)

    return learn


@pytest.mark.parametrize("method", ["dsc_ewc_dc", "clora", "per_concept"])
def test_a_run_that_was_killed_ends_with_the_same_result(
    tmp_path: Path, subjects: list[Subject], brief: Settings, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settings = replace(brief, limit=3)
    (whole,) = runs(tmp_path / "whole", subjects, settings, method)
    (broken,) = runs(tmp_path / "broken", subjects, settings, method)
    runner.make([whole], jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "learn", killed_at(3, learner.learn))
        (line,) = runner.make([broken], jobs=1)
    assert "KilledError" in line
    assert "KilledError" in (broken.cell.folder / "error.txt").read_text("utf-8")
    assert (broken.left, results.load(tmp_path / "broken")) == ([3], [])

    learned: list[int] = []
    monkeypatch.setattr(
        runner, "learn", lambda *args, **o: (learned.append(len(args[2])), learner.learn(*args, **o))[1]
    )
    assert runner.make([broken], jobs=1) == []
    assert learned == [3]
    for task in (1, 2, 3):
        one, other = whole.cell.record(task), broken.cell.record(task)
        assert {k: v for k, v in one.figures.items() if k not in CLOCKS} == {
            k: v for k, v in other.figures.items() if k not in CLOCKS
        }
        assert all(torch.equal(values, other.features[name]) for name, values in one.features.items())
        kept = (run.cell.task(task) / "history.safetensors" for run in (whole, broken))
        tensors, again = map(load_file, kept)
        assert all(torch.equal(value, again[name]) for name, value in tensors.items())


def test_what_is_done_is_not_done_again(
    tmp_path: Path, subjects: list[Subject], brief: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = runs(tmp_path, subjects, brief, "finetune")
    runner.make(planned, jobs=1)
    monkeypatch.setattr(runner, "learn", killed_at(0, learner.learn))
    assert runner.make(planned, jobs=1) == []


def test_half_a_task_counts_as_none(tmp_path: Path, subjects: list[Subject], brief: Settings) -> None:
    (run,) = runs(tmp_path, subjects, brief, "finetune")
    partial = run.cell.task(1).with_suffix(".partial")
    partial.mkdir(parents=True)
    (partial / "record.json").write_text("{", "utf-8")
    assert run.left == [1, 2]
    runner.make([run], jobs=1)
    assert run.left == []
    assert not partial.exists()


def test_one_failure_does_not_end_the_others(
    tmp_path: Path, subjects: list[Subject], brief: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(base: BaseModel, config: object, *args: object, **options: object) -> learner.Learned:
        if config.method == "ewc":  # type: ignore[attr-defined]
            raise FloatingPointError("it diverged")
        return learner.learn(base, config, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "learn", learn)
    (line,) = runner.make(runs(tmp_path, subjects, brief, "ewc", "finetune"), jobs=1)
    assert line.endswith("FloatingPointError: it diverged")
    assert [result.cell.label for result in results.load(tmp_path)] == ["finetune"]


def test_a_worker_that_dies_does_not_end_the_others(tmp_path: Path, subjects: list[Subject], brief: Settings) -> None:
    dying, living = runs(tmp_path, subjects, brief, "ewc", "finetune")

    class Deadly(runner.Run):
        def __reduce__(self) -> tuple[object, ...]:
            return os._exit, (1,)  # where it is unpacked

    deadly = Deadly(dying.cell, dying.setup, dying.contender, dying.subjects, dying.settings)
    (line,) = runner.make([deadly, living], jobs=2)
    assert line.startswith(str(dying.cell.folder))
    assert line.endswith("the same command tries again")
    assert [result.cell.label for result in results.load(tmp_path)] == ["finetune"]


def test_a_run_that_diverged_has_no_norm(tiny_base: BaseModel) -> None:
    adapter = some_adapter(tiny_base.layout, {"mug": 1}, rank=2, alpha=4.0)
    assert math.isnan(learner.log_norm(replace(adapter, up_KR=adapter.up_KR * math.nan), tiny_base.layout.widths))


def test_what_is_kept_to_learn_on_is_counted(tmp_path: Path, subjects: list[Subject], brief: Settings) -> None:
    runner.make(runs(tmp_path, subjects, brief, "finetune", "ewc_dc", "dsc", "joint"), jobs=1)
    last = {result.cell.label: result.last.figures for result in results.load(tmp_path)}
    lora = last["finetune"]["stored"] - 2 * 32
    assert last["finetune"]["kept"] == last["finetune"]["stored"]
    assert last["ewc_dc"]["kept"] == last["ewc_dc"]["stored"] + lora, "Fisher information is as large as the LoRA"
    assert last["dsc"]["kept"] == 2 * (lora + 32), "a teacher a task"
    assert last["joint"]["stored"] == last["joint"]["kept"] == lora + 2 * 32


def test_a_folder_takes_no_runs_with_other_settings(
    tmp_path: Path, subjects: list[Subject], brief: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(steps: int) -> list[runner.Run]:
        return runs(tmp_path, subjects, replace(brief, steps=steps), "ewc")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "learn", killed_at(2, learner.learn))
        runner.make(told(3), jobs=1)
    with pytest.raises(ConflictError, match=r"learning\.loop\.steps: 3 then, 4 now"):
        runner.make(told(4), jobs=1)
    assert runner.make(told(3), jobs=1) == []


def test_what_was_begun_and_left_nothing_may_be_told_otherwise(
    tmp_path: Path, subjects: list[Subject], brief: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "learn", killed_at(1, learner.learn))
        runner.make(runs(tmp_path, subjects, brief, "ewc"), jobs=1)
    (again,) = runs(tmp_path, subjects, replace(brief, steps=4), "ewc")
    assert runner.make([again], jobs=1) == []
    assert json.loads((again.cell.folder / "run.json").read_text("utf-8"))["learning"]["loop.steps"] == 4


def test_the_norm_is_that_of_the_whole_delta(tiny_base: BaseModel) -> None:
    adapter = some_adapter(tiny_base.layout, {"mug": 1}, rank=2, alpha=4.0)
    ups = adapter.up_KR.split(tiny_base.layout.widths)
    dense = sum((2.0 * up @ down).abs().sum() for up, down in zip(ups, adapter.down_PRD, strict=True))
    assert learner.log_norm(adapter, tiny_base.layout.widths) == pytest.approx(float(dense.log()), rel=1e-5)


def test_stored_parameters_grow_only_where_adapters_do(
    tmp_path: Path, subjects: list[Subject], brief: Settings, tiny_folders: dict[str, Path]
) -> None:
    runner.make(runs(tmp_path, subjects, brief, "finetune", "clora", "per_concept", "finetune_vera"), jobs=1)
    for result in results.load(tmp_path):
        first, last = (result.records[n].figures for n in (1, 2))
        grows = result.cell.label in {"clora", "per_concept"}
        width = 32  # one more embedding
        assert last["stored"] - first["stored"] == (first["trained"] if grows else width), result.cell.label


def test_the_cluster_for_runs_at_once_is_reached_from_this_machine_alone() -> None:
    use = "with _cluster(1) as ray: print(ray.nodes()[0]['NodeManagerAddress'])"
    script = f"from cp_train.benchmark.runner import _cluster\n{use}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["127.0.0.1"]
