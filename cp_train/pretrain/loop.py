"""The training loop all stages share: checkpoints, exact resume, schedule, averaged weights.

Every random draw of step i comes from a generator seeded with (seed, i), never from a running one, so a run that
was killed and resumed from its checkpoint computes the same numbers as one that was not, on as many threads. A
checkpoint keeps the settings it was made with, and is refused under others.

Learning rate: linear warm-up, constant, then to zero as 1 - sqrt over the last part of the run
(warm-up-stable-decay, arXiv 2405.18392).
Averaged weights: e <- d e + (1 - d) w, with d = min(decay, (1 + i) / (10 + i)).
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cp_train.pretrain.progress import Progress
from services.errors import RefusedError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train.

    Raises:
        ValueError: no steps, or a share that is none.
    """

    steps: int
    lr: float
    warmup: int = 200
    decay: float = 0.2
    """The share of the steps at the end over which the rate falls to zero."""
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    every: int = 500
    """Steps from checkpoint to checkpoint."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1 or self.steps < 1 or self.every < 1:
            raise ValueError(f"a schedule needs steps >= 1, every >= 1 and decay within 0..1, got {self}")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        fall = max(1, round(self.steps * self.decay))
        left = (self.steps - step) / fall
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * min(1.0, 1 - math.sqrt(max(0.0, 1 - left)))


def dice(seed: int, step: int | str = "") -> random.Random:
    """The choices of one step (which pictures, which words)."""
    return random.Random(f"{seed} {step}")  # noqa: S311 - training data, not secrets


def generator(seed: int, step: int) -> torch.Generator:
    """The noise of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def autocast() -> torch.autocast:
    """Multiplies in bfloat16 where the CPU can; where it would be emulated, float32 is many times as fast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(torch.cpu.get_capabilities().get("avx512_bf16")))


Loss = Callable[[int], tuple[Tensor, str]]
"""Step number -> the loss to descend, and a note for the progress line."""


class Trainer:
    """Trains `model` under `schedule`, keeping its state in one checkpoint file.

    `settings` are plain values, nested or not: all that decides the outcome beside the data, the schedule included.
    """

    def __init__(
        self, name: str, model: nn.Module, schedule: Schedule, checkpoint: Path, settings: Mapping[str, Any]
    ) -> None:
        self.name, self.model, self.schedule, self.checkpoint = name, model, schedule, checkpoint
        self.settings = _flat(settings)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        groups = _groups(model, schedule.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.99), fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = 0

    def run(self, loss: Loss) -> None:
        """Train to the end, from the checkpoint if there is one; `loss` draws from `generator(seed, step)` alone."""
        self.resume()
        progress = Progress(self.name, self.schedule.steps, done=self.step)
        self.model.train()
        while self.step < self.schedule.steps:
            note = self._one(loss)
            progress.update(self.step, note)
            if self.step % self.schedule.every == 0 or self.step == self.schedule.steps:
                self.save()

    def _one(self, loss: Loss) -> str:
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value, note = loss(self.step)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow()
        self.step += 1
        return note

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """The model with the averaged weights in place: the run is over."""
        for parameter, mean in zip(self.parameters, self.average, strict=True):
            parameter.copy_(mean)
        return self.model.eval()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(self._state(), partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one.

        Raises:
            RefusedError: it was made with other settings, or does not say with which.
        """
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self._check(state.get("settings", {}))
            self._restore_state(state)

    def _check(self, made_with: Mapping[str, Any]) -> None:
        now = self.settings
        others = [name for name in {**now, **made_with} if made_with.get(name) != now.get(name)]
        if others:
            told = ", ".join(f"{name} was {made_with.get(name, 'not noted')}, is {now.get(name)}" for name in others)
            raise RefusedError(
                f"{self.checkpoint} was made with other settings ({told}): give the same, or delete it to begin anew."
            )

    def _state(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }

    def _restore_state(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = list(state["average"])
        self.step = state["step"]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings in one level: {"schedule": {"lr": 1}} is {"schedule.lr": 1}."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
