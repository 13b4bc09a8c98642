"""What a comparison is told once, for all its runs alike."""

from dataclasses import asdict, dataclass, field
from typing import Any

from cp_train.benchmark.contenders import Contender, Overrides
from cp_train.denoise import LoopConfig
from cp_train.evaluation.features import AUTO
from cp_train.fisher import FisherConfig
from cp_train.plan import LearningConfig
from services.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How a model is examined after a task.

    Attributes:
        pictures: in each cell that MMD is computed from.
        glimpses: of them that are drawn again after later tasks, for the retention curves.
        steps: of the sampler.
        images: of each concept that the diffusion classifier is asked about.
        trials: timesteps and noises of each such answer.
    """

    pictures: int = 16
    glimpses: int = 4
    steps: int = 15
    images: int = 3
    trials: int = 8

    def __post_init__(self) -> None:
        if min(self.pictures, self.glimpses, self.steps, self.images, self.trials) < 1:
            raise ValueError("pictures, glimpses, drawing steps, images and trials must be at least 1.")
        if self.pictures % 4 or self.glimpses > self.pictures // 2:
            raise ValueError("pictures must be a multiple of 4, and glimpses at most half of them.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a comparison; the length of a task is meant for two CPU cores and the embedded base.

    Attributes:
        base: embedded, a directory, or a hub id.
        features: see `cp_train/evaluation/features.py`.
        steps, batch_size, rank, fisher_batches: of every task of every method.
        fisher_chunk: see `FisherConfig`; no outcome depends on it.
        limit: of concepts in a sequence, for short trials.
        chosen: method -> settings chosen for it, by a sweep.
        threads: of torch in each process; 0: all cores.
    """

    base: str = "embedded"
    features: str = AUTO
    steps: int = 150
    batch_size: int = 8
    rank: int = 16
    fisher_batches: int = 50
    fisher_chunk: int = 0
    limit: int | None = None
    chosen: dict[str, Overrides] = field(default_factory=dict)
    examination: Examination = field(default_factory=Examination)
    device: str = "auto"
    threads: int = 0

    def learning(self, contender: Contender, seed: int) -> LearningConfig:
        """The settings of one task. Raises `InputError` for one that is out of its range."""
        try:
            common = LearningConfig.for_method(
                contender.method,
                rank=self.rank,
                loop=LoopConfig(steps=self.steps, batch_size=self.batch_size, seed=seed),
                fisher=FisherConfig(batches=self.fisher_batches, chunk=self.fisher_chunk),
            )
        except ValueError as error:
            raise InputError(f"{error}") from error
        return contender.config(common, self.chosen.get(contender.method, {}))

    def record(self, contender: Contender) -> dict[str, Any]:
        """Everything that decides the outcome of this contender's runs, to tell runs apart that must not be mixed."""
        return {
            "base": self.base,
            "features": self.features,
            "limit": self.limit,
            "examination": asdict(self.examination),
            "learning": self.learning(contender, 0).flat(),
        }
