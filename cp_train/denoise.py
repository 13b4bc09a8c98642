"""The phase that learns a concept: it minimises the denoising error of the concept's images under its prompts.

    L_denoise = E_{x_0, t, eps, prompt} || y - y_theta(x_t, t, prompt) ||^2 / elements      t uniform over the schedule

y: the target that the base was trained on (`services/scores.py`). Latents are cached; only the new concept's prompts
are encoded in a step, each once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cp_train.phase import Group, Phase, Rate, Shard, State, step_generator
from cp_train.student import Student
from services import scores
from services.errors import InputError

MAX_SEED = 2**32
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the training steps; the defaults are ours, measured on the embedded base (docs/log.md).

    Attributes:
        steps: optimizer steps.
        batch_size: images a step over all workers.
        lr: Adam's learning rate for the LoRA.
        token_lr: the same for the new embedding.
        warmup: steps of linear warm-up; after it the rate follows a half cosine to zero.
        seed: of every draw.
        precision: of the U-Net's arithmetic while training, float32 or bfloat16 (autocast); weights are float32.
    """

    steps: int = 400
    batch_size: int = 8
    lr: float = 1e-3
    token_lr: float = 5e-3
    warmup: int = 10
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or self.warmup < 0:
            raise ValueError("steps and batch size must be at least 1, warm-up at least 0.")
        if not all(0 < rate < math.inf for rate in (self.lr, self.token_lr)):
            raise ValueError("learning rates must be above 0 and finite.")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must be from 0 to {MAX_SEED - 1}.")
        if self.precision not in {"float32", "bfloat16"}:
            raise ValueError("precision must be float32 or bfloat16.")


def check_shares(config: LoopConfig, workers: int) -> None:
    """Raise `InputError` unless every worker has an image of each batch."""
    if config.batch_size < workers:
        raise InputError(
            f"batch size {config.batch_size} is less than one image for each of {workers} training workers; "
            "raise it, or lower PALIMPSEST_TRAIN_WORKERS.",
            param="batch_size",
        )


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is learned from.

    Attributes:
        latents_NCHW: cached latents of all concepts that are learned together.
        concept_N: which of them each latent shows, int64; all zeros where there is one.
        prompts: for each of them its prompts, equally many; each image of a batch draws one of its concept's.
    """

    latents_NCHW: Tensor
    concept_N: Tensor
    prompts: Sequence[Sequence[str]]

    @classmethod
    def of_one(cls, latents_NCHW: Tensor, prompts: Sequence[str]) -> "Pictures":
        """Pictures of one concept."""
        return cls(latents_NCHW, torch.zeros(len(latents_NCHW), dtype=torch.int64), [prompts])


class Denoising(Phase):
    """Training on one concept's images.

    Args:
        student: trained in place.
        model: the student, or a wrapper of it (DDP) whose gradients are averaged over the workers.
        pictures, config, shard: see there.
        token_only: leave the weights alone and train the embedding.

    Raises:
        InputError: there are more workers than images in a batch.
    """

    def __init__(
        self,
        student: Student,
        model: nn.Module,
        pictures: Pictures,
        config: LoopConfig,
        shard: Shard,
        *,
        token_only: bool = False,
    ) -> None:
        check_shares(config, shard.world)
        self.student, self.model, self.pictures = student, model, pictures
        self.config, self.shard, self.token_only = config, shard, token_only
        self.steps = config.steps
        self.prompts = student.tokenize([prompt for prompts in pictures.prompts for prompt in prompts])

    def begin(self, state: State | None) -> list[Group]:
        """The weights and the embedding, each with its rate."""
        del state
        config = self.config
        token = Group([self.student.token], Rate(config.token_lr, config.warmup, config.steps))
        weights = Group(list(self.student.weights), Rate(config.lr, config.warmup, config.steps))
        return [token] if self.token_only else [weights, token]

    def loss(self, step: int) -> Tensor:
        """The denoising error of this worker's rows."""
        trial, prompts = self.draw(step)
        used, place = prompts.unique(return_inverse=True)
        kv_PLK = self.model(self.student.encode([self.prompts[index] for index in used.tolist()]))
        # index_select, not indexing: the backward of indexing adds in whatever order the threads come.
        kv_SPLK = kv_PLK.index_select(0, place.to(kv_PLK.device)).unsqueeze(1)
        errors_SP = scores.errors(self.student.base, trial, kv_SPLK, precision=self.config.precision)
        return self.shard.share(errors_SP, self.config.batch_size)

    def draw(self, step: int) -> tuple[scores.Trial, Tensor]:
        """This worker's rows of the step's global batch, and the index of each row's prompt."""
        generator = step_generator(self.config.seed, step)
        size, latents_NCHW = self.config.batch_size, self.pictures.latents_NCHW
        forms = len(self.pictures.prompts[0])
        picked = torch.randint(len(latents_NCHW), (size,), generator=generator)
        prompts = self.pictures.concept_N[picked] * forms + torch.randint(forms, (size,), generator=generator)
        trial = scores.draw_trial(self.student.base, latents_NCHW[picked], generator)
        return trial.rows(self.shard.rows), prompts[self.shard.rows]
