"""One task of one method, without the job around it: trained, consolidated, timed; nothing drawn or judged."""

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cp_train.benchmark.subjects import Subject
from cp_train.methods import find_method
from cp_train.phase import Shard
from cp_train.plan import LearningConfig, Plan
from cp_train.task import Task
from services.adapter import Adapter, TrainingState, new_adapter
from services.base_model import BaseModel

NORM_EVERY = 5
"""Steps between two measurements of the adapter's norm."""


@dataclass(frozen=True, eq=False)
class History:
    """What is left of the tasks so far.

    Attributes:
        adapters: concept name -> the adapter as it was after that task, in order.
        fisher: accumulated, where the method reads it.
    """

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    fisher: TrainingState | None = None


@dataclass
class Cost:
    """Of one task: wall and CPU seconds of training and consolidation, and the process's peak memory while at it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


@dataclass(frozen=True, eq=False)
class Learned:
    """What a task left, what it cost, and how it went.

    Attributes:
        history: for the next task.
        trained: parameters trained in this task.
        losses: of every step.
        norms: (step, natural logarithm of the L1 norm of the adapter's dW) every few steps.
    """

    history: History
    trained: int
    cost: Cost
    losses: list[float] = field(default_factory=list)
    norms: list[tuple[int, float]] = field(default_factory=list)

    def stored(self, model: object) -> int:
        """Parameters that must be kept for `model` to draw; what is frozen and made from a seed does not count.

        They grow with the tasks where there is an adapter for each, or one whose rank grows; otherwise only by the
        concepts' embeddings.
        """
        adapters = list(self.history.adapters.values())
        if len(adapters) == 1:  # it may know several concepts: of what learns all at once
            return self.trained
        if not isinstance(model, Adapter) or adapters[-1].rank > adapters[0].rank:
            return self.trained * len(adapters)
        return self.trained + sum(rows.numel() for rows in list(adapters[-1].tokens.values())[:-1])

    def kept(self, model: object, *, teachers: bool) -> int:
        """Parameters that must be kept to learn another concept: Fisher information, and every adapter as a teacher."""
        fisher, taught = self.history.fisher, len(self.history.adapters) if teachers else 0
        weights = fisher.down_PRD.numel() + fisher.up_KR.numel() if fisher else 0
        return max(self.stored(model), self.trained * taught) + weights


def learn(
    base: BaseModel, config: LearningConfig, subjects: Sequence[Subject], history: History, *, seed: int
) -> Learned:
    """Learn the last of the subjects on top of what the tasks before left.

    Args:
        base: the base.
        config: settings; a method that replays takes as many times the steps as there are subjects.
        subjects: all so far, the new one last.
        history: what the earlier tasks left.
        seed: of the adapter's initialisation; the loop's own is in `config`.
    """
    method, *earlier, new = find_method(config.method), *subjects
    if method.replays:
        config = replace(config, loop=replace(config.loop, steps=config.loop.steps * len(subjects)))
    before = tuple(history.adapters.values())
    fresh = method.alone or method.replays or not before
    plan = Plan(
        lineage="benchmark",
        concept=new.concept,
        base=base.ref.id,
        base_ref=base.ref,
        intake_id="",
        config=config,
        parent=new_adapter(base.layout, rank=config.rank, seed=seed) if fresh else before[-1],
        fisher=None if fresh else history.fisher,
        earlier=() if fresh else tuple(subject.concept for subject in earlier),
        run_id="",
        teachers=before if method.distils else (),
    )
    replay = [(s.concept, list(s.images)) for s in earlier] if method.replays else []
    with _measured() as cost:
        task = Task(plan, base, list(new.images), shard=Shard(), wrap=lambda model: model, replay=replay)
        course = _Course(lambda: log_norm(task.adapter(), base.layout.widths))
        task.train(course, None)
        adapter = task.adapter()
        fisher = task.fisher_information() if method.reads_fisher else None
    trained = sum(parameter.numel() for parameter in task.trained())
    after = History({**history.adapters, new.concept.name: adapter}, fisher)
    return Learned(after, trained, cost, course.losses, course.norms)


class _Course:
    """Called after each step: keeps the loss, and the adapter's norm every few steps."""

    def __init__(self, norm: Callable[[], float]) -> None:
        self.norm = norm
        self.losses: list[float] = []
        self.norms: list[tuple[int, float]] = []

    def __call__(self, step: int, loss: float, _state: Any) -> None:
        self.losses.append(round(loss, 5))
        if step == 1 or step % NORM_EVERY == 0:
            self.norms.append((step, round(self.norm(), 4)))


def log_norm(adapter: Adapter, widths: Sequence[int]) -> float:
    """Natural logarithm of the L1 norm of dW = (alpha / R) B A of all projections; that of 1e-12 where it is zero."""
    ups = adapter.up_KR.split(list(widths))
    total = sum((up @ down).abs().sum() for down, up in zip(adapter.down_PRD, ups, strict=True))
    return math.log(max(adapter.scale * float(total), 1e-12))  # in this order nan, a run that diverged, stays nan


@contextmanager
def _measured() -> Iterator[Cost]:
    cost = Cost()
    _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    cost.peak_mb = _peak_mb()


_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if _PEAK.exists():  # Linux: without it the peak is that of the process so far
        _PEAK.write_text("5", "ascii")


def _peak_mb() -> float:
    """Peak memory in MB since `_forget_peak`: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text("ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1.024e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
