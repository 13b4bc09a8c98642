"""What the step loop runs: phases, each with its own loss, its own steps and a fresh optimizer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
"""A checkpoint, as flat tensors."""


@dataclass(frozen=True)
class Shard:
    """Which rows of the global batch this worker takes: `rank`, `rank + world`, …"""

    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> slice:
        """This worker's rows."""
        return slice(self.rank, None, self.world)

    def share(self, losses_S: Tensor, batch_size: int) -> Tensor:
        """This worker's part of the batch's mean loss, such that DDP's mean over the workers is that mean.

        Not the mean of the shard: shards may differ by a row.
        """
        return losses_S.sum() * self.world / batch_size


@dataclass(frozen=True)
class Rate:
    """A learning rate's course: linear warm-up to `peak`, then half a cosine down to zero."""

    peak: float
    warmup: int
    steps: int

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a learning rate."""

    parameters: list[torch.nn.Parameter]
    rate: Rate


class Phase(ABC):
    """A stretch of steps that minimises one loss. All it draws comes from the seed and the step alone."""

    steps: int

    @abstractmethod
    def begin(self, state: State | None) -> list[Group]:
        """Get ready; returns what is trained. `state`: what `state` returned, if the phase was begun before."""

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """This worker's share of the loss of a step, counted over all phases."""

    def state(self) -> State:
        """What a resumed phase needs besides the student's weights."""
        return {}


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of every draw of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
