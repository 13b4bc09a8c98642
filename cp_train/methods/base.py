"""What a learning method may decide; the loop knows nothing else of it.

A method is its class attributes, its penalty, and the coordinates it descends in. To compose methods is to inherit from
them: a penalty adds to `super().penalty`, so `class EWCDCKV(KV, EWCDC)` sums both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from cp_train.optimizer import LinearMap
from cp_train.student import Student
from services.adapter import Adapter, TrainingState
from services.base_model import BaseModel


@dataclass(frozen=True, eq=False)
class Memory:
    """What is left of the earlier tasks: no images, only weights.

    Attributes:
        parent: the adapter of the version before.
        fisher: its accumulated Fisher information, shaped like the trained weights; None before the first task is done.
        protected_PDD: second moments of the prompts that must stay (`methods/kv.py`); None where no method asks.
    """

    parent: Adapter
    fisher: TrainingState | None
    protected_PDD: Tensor | None = None

    @property
    def first(self) -> bool:
        """Nothing was learned yet."""
        return not self.parent.tokens


class Conditioner(Protocol):
    """What draws where no single adapter can."""

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Keys and values kv_PLK of some prompts."""


class Method:
    """Base of all methods: the loss is L_denoise, plus what `penalty` adds.

    Attributes:
        name: its name on the command line.
        default_weight: lambda of its penalty; None if it has none that lambda scales.
        default_lr: learning rate of its weights where they are not a LoRA's; None: the loop's own.
        contrast: weight alpha of the diffusion-classifier terms in the Fisher information it stores, relative to the
            setting; 0 is the denoising loss alone.
        student: how the weights are parametrised.
        token_only: train the embedding and leave the weights alone.
        reads_fisher: its penalty needs the Fisher information.
        protects: its penalty and its coordinates need the second moments of protected prompts.
        distils: a second phase follows (`methods/dsc.py`).
        alone: every concept is learned from the bare base, whatever was learned before.
        replays: all concepts' images are there at once.
        benchmark_only: why the product cannot use it; None if it can.
    """

    name: ClassVar[str]
    default_weight: ClassVar[float | None] = None
    default_lr: ClassVar[float | None] = None
    contrast: ClassVar[float] = 1.0
    student: ClassVar[type[Student]] = Student
    token_only: ClassVar[bool] = False
    reads_fisher: ClassVar[bool] = False
    protects: ClassVar[bool] = False
    distils: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    replays: ClassVar[bool] = False
    benchmark_only: ClassVar[str | None] = None

    def __init__(self, memory: Memory, *, weight: float = 0.0, kv_weight: float = 0.0, kv_ridge: float = 0.0) -> None:
        self.memory = memory
        self.weight = weight
        self.kv_weight, self.kv_ridge = kv_weight, kv_ridge

    def penalty(self, student: Student) -> Tensor | None:
        """A differentiable scalar added to each step's loss, or None."""
        del student
        return None

    def coordinates(self, student: Student) -> Mapping[nn.Parameter, LinearMap]:
        """The maps S of the student's parameters that are not descended in along their own axes (`optimizer.py`)."""
        del student
        return {}

    @classmethod
    def model(cls, base: BaseModel, adapters: Mapping[str, Adapter]) -> Adapter | Conditioner:
        """What draws after some tasks.

        Args:
            base: the base they were learned on.
            adapters: concept name -> the adapter as it was after that task, in the order learned.
        """
        del base
        return list(adapters.values())[-1]
