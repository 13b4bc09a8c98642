"""What a comparison is told once, for all its runs alike."""

from dataclasses import asdict, dataclass, field
from typing import Any

from cp_train.benchmark.contenders import Contender, Overrides, inherited
from cp_train.denoise import LoopConfig, Precision
from cp_train.evaluation.features import AUTO
from cp_train.fisher import FisherConfig
from cp_train.methods import find_method
from cp_train.methods.dsc import DSCConfig
from cp_train.plan import LearningConfig
from services.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How a model is examined after a task.

    Attributes:
        pictures: in each cell that MMD is computed from.
        glimpses: of them that are drawn again after later tasks, for the retention curves.
        steps: of the sampler.
        images: of each concept that the diffusion classifier is asked about at the end; on the way it is one.
        trials: timesteps and noises of each such answer.
        precision: of the U-Net's arithmetic while it draws; losses and scores are float32 always.
    """

    pictures: int = 16
    glimpses: int = 4
    steps: int = 15
    images: int = 3
    trials: int = 8
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if min(self.pictures, self.glimpses, self.steps, self.images, self.trials) < 1:
            raise ValueError("pictures, glimpses, drawing steps, images and trials must be at least 1.")
        if self.precision not in {"float32", "bfloat16"}:
            raise ValueError("precision must be float32 or bfloat16.")
        if self.pictures % 4 or self.glimpses > self.pictures // 2:
            raise ValueError("pictures must be a multiple of 4, and glimpses at most half of them.")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long everything takes, for all methods alike; docs/method.md has the hours.

    Attributes:
        steps, dsc_steps: of a task's training and of DSC's second phase.
        fisher_batches: samples of the Fisher pass.
        pictures, drawing_steps: see `Examination`.
        precision: of training and drawing; losses, scores and Fisher information are float32 always.
    """

    steps: int
    dsc_steps: int
    fisher_batches: int
    pictures: int
    drawing_steps: int
    precision: Precision


BUDGETS = {
    "full": Budget(steps=150, dsc_steps=100, fisher_batches=50, pictures=16, drawing_steps=15, precision="float32"),
    "brief": Budget(steps=100, dsc_steps=50, fisher_batches=24, pictures=16, drawing_steps=10, precision="bfloat16"),
}
"""`--budget`: what its flags are where they are not given. Ours, for two CPU cores and the embedded base."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a comparison.

    Attributes:
        base: embedded, a directory, or a hub id.
        features: see `cp_train/evaluation/features.py`.
        steps, batch_size, rank, fisher_batches, dsc_steps, precision: of every task of every method.
        fisher_chunk: see `FisherConfig`; no outcome depends on it.
        limit: of concepts in a sequence, for short trials.
        chosen: method -> settings chosen for it, and for what is composed of it, by a sweep.
        threads: of torch in each process; 0: all cores.
    """

    base: str = "embedded"
    features: str = AUTO
    steps: int = 150
    batch_size: int = 8
    rank: int = 16
    fisher_batches: int = 50
    dsc_steps: int = 100
    precision: Precision = "float32"
    fisher_chunk: int = 0
    limit: int | None = None
    chosen: dict[str, Overrides] = field(default_factory=dict)
    examination: Examination = field(default_factory=Examination)
    device: str = "auto"
    threads: int = 0

    def learning(self, contender: Contender, seed: int, *, gamma: float = 1.0) -> LearningConfig:
        """The settings of one task. Raises `InputError` for one that is out of its range.

        Args:
            contender: who learns; its own settings come last.
            seed: of the task's draws.
            gamma: decay of the earlier tasks' Fisher information, which the setup decides.
        """
        lr = find_method(contender.method).default_lr or LoopConfig.lr
        try:
            common = LearningConfig.for_method(
                contender.method,
                rank=self.rank,
                loop=LoopConfig(
                    steps=self.steps, batch_size=self.batch_size, lr=lr, seed=seed, precision=self.precision
                ),
                fisher=FisherConfig(batches=self.fisher_batches, chunk=self.fisher_chunk, gamma=gamma),
                dsc=DSCConfig(steps=self.dsc_steps),
            )
        except ValueError as error:
            raise InputError(f"{error}") from error
        return contender.config(common, inherited(contender.method, self.chosen))

    def record(self, contender: Contender, *, gamma: float = 1.0) -> dict[str, Any]:
        """Everything that decides the outcome of this contender's runs, to tell runs apart that must not be mixed."""
        return {
            "base": self.base,
            "features": self.features,
            "limit": self.limit,
            "examination": asdict(self.examination),
            "learning": self.learning(contender, 0, gamma=gamma).flat(),
        }
