"""Runs, one after the other or as parallel Ray tasks; what is kept of them is not done again."""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from cp_train.benchmark.contenders import Contender
from cp_train.benchmark.examine import Examiner
from cp_train.benchmark.learner import Learned, learn
from cp_train.benchmark.settings import Settings
from cp_train.benchmark.setups import Setup, sequence
from cp_train.benchmark.store import Cell, Record
from cp_train.benchmark.subjects import Subject
from cp_train.evaluation.features import Features, open_agreement, open_features
from cp_train.methods import find_method
from services import machine
from services.base_model import BaseModel, load_base, use_threads

log = logging.getLogger("palimpsest.benchmark")

_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces a loopback address by another interface's
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the person's home, which then locks other local clusters
}
_ORDERS, _TASKS = 1000, 100
"""More than there are orders of a setup, and tasks of an order."""
_LOOK_SECONDS = 5.0
"""Between two looks at what parallel tasks have done."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run to be made: where it is kept, who competes, and on what."""

    cell: Cell
    setup: Setup
    contender: Contender
    subjects: Sequence[Subject]
    settings: Settings

    @property
    def tasks(self) -> list[int]:
        """Numbers of its tasks. A method that replays all images learns once, at the end."""
        count = len(self.subjects)
        return [count] if find_method(self.contender.method).replays else list(range(1, count + 1))

    @property
    def left(self) -> list[int]:
        """Those still to do."""
        return [number for number in self.tasks if not self.cell.done(number)]

    def claim(self, base: BaseModel, features: Features) -> None:
        """Note what it is told. Raises `ConflictError` if it was begun with other settings."""
        concepts = [subject.concept for subject in self.subjects]
        told = self.settings.record(self.contender, gamma=self.setup.gamma) | {
            "method": self.contender.method,
            "concepts": [concept.name for concept in concepts],
            "nouns": [concept.noun for concept in concepts],
            "images": [subject.digest for subject in self.subjects],
            "base_revision": base.ref.revision,
            "features_digest": features.digest,
        }
        self.cell.claim(told)


def plan(
    root: Path,
    setup: Setup,
    contenders: Sequence[Contender],
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    orders: int,
    seeds: int,
) -> list[Run]:
    """All runs, by seed and order first: every contender is met early, and what is there can be compared pairwise."""
    return [
        Run(Cell(root, setup.name, order, seed, contender.label), setup, contender, chosen, settings)
        for seed in range(seeds)
        for order in range(orders)
        for chosen in [sequence(setup, order, subjects, settings.limit)]
        for contender in contenders
    ]


def make(runs: Sequence[Run], *, jobs: int) -> list[str]:
    """Make the runs that are not there yet. Returns a line for each that failed; the others are made all the same.

    Raises:
        ConflictError: a run was begun with other settings, on another base or with other features.
        InputError: a setting, the base or the features cannot be used.
    """
    base, examiner = _tools(runs[0].settings)
    for run in runs:
        run.claim(base, examiner.features)
    waiting = [run for run in runs if run.left]
    progress = _Progress(sum(len(run.left) for run in waiting))
    return _in_parallel(waiting, jobs, progress) if jobs > 1 else _in_turn(waiting, progress)


class _Progress:
    """Says what is done and when the rest will be."""

    def __init__(self, tasks: int) -> None:
        self.tasks, self.start = tasks, time.monotonic()

    def say(self, left: int, what: str) -> None:
        done, spent = self.tasks - left, time.monotonic() - self.start
        rest = f"{spent / done * left / 60:.0f} min" if done else "unknown"
        log.info("%d/%d tasks, ETA %s: %s", done, self.tasks, rest, what)


def _in_turn(runs: Sequence[Run], progress: _Progress) -> list[str]:
    failed = []
    for run in runs:
        line = attempt(run, lambda what: progress.say(sum(len(run.left) for run in runs), what))
        failed += [line] if line else []
    return failed


def _in_parallel(runs: Sequence[Run], jobs: int, progress: _Progress) -> list[str]:
    """As Ray tasks: on the cluster whose job this is (its workers must see the same folder), else on this machine."""
    threads = max((run.settings.threads for run in runs), default=1)
    with _cluster(jobs * max(1, threads)) as ray:
        remote = ray.remote(num_cpus=max(1, threads), max_retries=2)(_attempt_quietly)
        begun = {remote.remote(run): run for run in runs}
        waiting, failed = list(begun), []
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_LOOK_SECONDS)
            for task in done:
                try:
                    failed += [line] if (line := ray.get(task)) else []
                except ray.exceptions.RayError as error:  # the worker died again and again
                    failed.append(f"{begun[task].cell.folder}: {type(error).__name__}; the same command tries again")
            progress.say(sum(len(run.left) for run in runs), f"{len(waiting)} runs to go")
        return failed


@contextmanager
def _cluster(cpus: int) -> Iterator[Any]:
    """Ray on the cluster whose job this is, or on one of this process's own, whose settings are gone with it."""
    own = "RAY_ADDRESS" not in os.environ
    added = [name for name in _RAY if own and name not in os.environ]
    os.environ.update({name: _RAY[name] for name in added})
    try:
        import ray  # reads some of them when it is imported, so not before

        here = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(log_to_driver=False, **(here if own else {}))
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name in added:
            del os.environ[name]


def _attempt_quietly(run: Run) -> str | None:
    return attempt(run, lambda _: None)


def attempt(run: Run, say: Callable[[str], None]) -> str | None:
    """Make a run; returns what went wrong in one line, if something did.

    A comparison takes a night: one contender that diverges or fails must not end it. The trace is kept beside the run.
    """
    try:
        carry_out(run, say)
    except Exception as error:
        (run.cell.folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        log.error("%s failed: %s", run.cell.folder, type(error).__name__)
        return f"{run.cell.folder}: {type(error).__name__}: {error}"
    return None


def carry_out(run: Run, say: Callable[[str], None]) -> None:
    """Learn and examine every task of a run that is not kept yet."""
    settings, contender, cell = run.settings, run.contender, run.cell
    use_threads(settings.threads)
    base, examiner = _tools(settings)
    history = cell.history(max((n for n in run.tasks if cell.done(n)), default=0))
    for number in run.left:
        subjects = run.subjects[:number]
        config = settings.learning(contender, task_seed(cell, number), gamma=run.setup.gamma)
        learned = learn(base, config, subjects, history, seed=run_seed(cell))
        record, sheets = _examined(run, examiner, learned, number, tau=config.fisher.tau)
        cell.keep(number, record, learned.history, sheets)
        history = learned.history
        say(f"{cell.setup}, order {cell.order}, seed {cell.seed}, {cell.label}: task {number}")


def _examined(
    run: Run, examiner: Examiner, learned: Learned, number: int, *, tau: float
) -> tuple[Record, dict[str, Tensor]]:
    subjects, method = run.subjects[:number], find_method(run.contender.method)
    start, cpu = time.perf_counter(), time.process_time()
    model = method.model(examiner.base, dict(learned.history.adapters))
    learned.cost.seconds += time.perf_counter() - start
    learned.cost.cpu_seconds += time.process_time() - cpu
    last = number == len(run.subjects)
    record, sheets = examiner.examine(
        subjects, model, look=number % run.setup.every == 0, last=last, pairs=run.setup.pairs, tau=tau
    )
    record.figures.update(
        task=number,
        last=last,
        seconds=learned.cost.seconds,
        cpu_seconds=learned.cost.cpu_seconds,
        peak_mb=learned.cost.peak_mb,
        trained=learned.trained,
        stored=learned.stored(model),
        kept=learned.kept(model, teachers=method.distils),
        made_with=made_with(),
        unet=_unet_parameters(examiner.base),
        training_losses=learned.losses,
        norms=learned.norms,
        examination_seconds=time.perf_counter() - start,
    )
    return record, sheets


def run_seed(cell: Cell) -> int:
    """Of a run's own draws. Runs of two orders share none, so that seeds are nested in orders (`statistics.py`)."""
    return _ORDERS * cell.seed + cell.order


def task_seed(cell: Cell, number: int) -> int:
    """Of a task's draws: each task of each run has its own; the contenders of an order and seed share them."""
    return _TASKS * run_seed(cell) + number


@lru_cache(maxsize=1)
def made_with() -> str:
    """What a task was made with, in one line: the code, the libraries, the machine."""
    told = {"code": machine.revision(), **machine.describe()}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _unet_parameters(base: BaseModel) -> int:
    return sum(parameter.numel() for parameter in base.unet.parameters())


def _tools(settings: Settings) -> tuple[BaseModel, Examiner]:
    return _opened(settings.base, settings.features, settings.device, settings.examination)


@lru_cache(maxsize=1)
def _opened(base: str, features: str, device: str, how: Any) -> tuple[BaseModel, Examiner]:
    """The base and what examines its models, opened once in a process."""
    model = load_base(base, device=device)
    seen = open_features(features, base)
    return model, Examiner(model, seen, open_agreement(seen, base, model.tokenizer), how)
