"""Diffusion Scores Consolidation (Jha et al., arXiv 2410.00700): after training, a second phase of double distillation.

    L_DSC = H(P_T1, P_S) + H(P_T2, P_S) + || y_T1(c^n) - y_S(c^n) ||^2 + || y_T2(c^j) - y_S(c^j) ||^2   (+ penalty)

T1: LoRA_n just trained, frozen; S: the student, a copy of it; T2: LoRA_j, as it was right after an earlier concept c^j
was learned, drawn at random from the version's ancestors. P: diffusion-classifier scores (`services/scores.py`) over
C = {c^n, c^0, c^j}; x_t always comes from the current concept's images; y: the U-Net's prediction; H: cross-entropy.
Embeddings are frozen, so all three share them. The student becomes version n; the first task has no second phase.

Ours: all weights 1, squares as means over elements, teachers detached; s(t) of the scores is taken from the teachers'
errors; 100 steps. Teachers run once over a pool of fixed minibatches, each with its own (images, t, eps, c^j); a step
draws one of them, so that its price is the student's own: three conditionals, forward and backward.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cp_train.methods.base import Method
from cp_train.phase import Group, Phase, Rate, Shard, State, step_generator
from cp_train.student import FrozenContexts, Student
from services import scores
from services.adapter import Adapter
from services.conditioning import project

_POOL_SEED = 2_000_000_011


@dataclass(frozen=True, kw_only=True)
class DSCConfig:
    """Settings of the second phase; all ours.

    Attributes:
        steps: optimizer steps.
        lr: Adam's learning rate for the LoRA; it warms up and falls as in training.
        warmup: steps of linear warm-up.
        pool: minibatches on which the teachers are asked, and at most so many earlier concepts.
    """

    steps: int = 100
    lr: float = 5e-4
    warmup: int = 5
    pool: int = 12

    def __post_init__(self) -> None:
        if min(self.steps, self.pool) < 1 or self.warmup < 0 or not 0 < self.lr < math.inf:
            raise ValueError("DSC: steps and pool must be at least 1, warm-up at least 0, the rate above 0 and finite.")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a teacher says of a minibatch.

    Attributes:
        errors_SP: the error of each conditional of C.
        target_SCHW: its prediction for the one conditional that it teaches.
    """

    errors_SP: Tensor
    target_SCHW: Tensor


@dataclass(frozen=True, eq=False)
class Lesson:
    """A fixed minibatch of the pool: the trial, the text embeddings of C, and both teachers' answers."""

    trial: scores.Trial
    context_PLD: Tensor
    first: Answer
    second: Answer


def cross_entropy(log_p_SP: Tensor, log_q_SP: Tensor) -> Tensor:
    """H(P, Q) of each sample, [S]."""
    return -(log_p_SP.exp() * log_q_SP).sum(1)


def distillation_loss(predicted_SPCHW: Tensor, lesson: Lesson, scale_S: Tensor, tau: float) -> Tensor:
    """L_DSC of each sample, [S]; the conditionals are c^n, c^0, c^j in this order."""
    errors_SP = scores.mean_square(predicted_SPCHW, lesson.trial.target_SCHW.unsqueeze(1))
    log_s, log_1, log_2 = (
        scores.log_probabilities(e_SP, scale_S, tau)
        for e_SP in (errors_SP, lesson.first.errors_SP, lesson.second.errors_SP)
    )
    targets = torch.stack([lesson.first.target_SCHW, lesson.second.target_SCHW], 1)
    noise_S = scores.mean_square(predicted_SPCHW[:, [0, 2]], targets).sum(1)
    return cross_entropy(log_1, log_s) + cross_entropy(log_2, log_s) + noise_S


class Distillation(Phase):
    """The second phase.

    Args:
        student, model, shard: as in training.
        latents_NCHW: cached latents of the current concept.
        teachers: adapters of earlier versions; the last concept of each is its c^j.
        prompts: draws one minibatch's prompts of C, given the name of c^j.
        config: see there.
        batch_size, tau, seed, precision: as in training and scoring.
    """

    def __init__(
        self,
        student: Student,
        model: nn.Module,
        *,
        shard: Shard,
        latents_NCHW: Tensor,
        teachers: Sequence[Adapter],
        prompts: Callable[[torch.Generator, str], Sequence[str]],
        config: DSCConfig,
        batch_size: int,
        tau: float,
        seed: int,
        precision: str = "float32",
    ) -> None:
        self.student, self.model, self.shard = student, model, shard
        self.latents_NCHW, self.teachers, self.prompts = latents_NCHW, teachers, prompts
        self.config, self.batch_size, self.tau = config, batch_size, tau
        self.seed, self.precision = seed, precision
        self.steps = config.steps

    def begin(self, state: State | None) -> list[Group]:
        """Fix the first teacher, ask both over the pool. Only the LoRA is trained."""
        now = self.student.adapter()
        self.first = (state["down_PRD"], state["up_KR"]) if state else (now.down_PRD, now.up_KR)
        self.scale = scores.ErrorScale(len(self.student.base.alphas_cumprod))
        self.pool = self._pool()
        config = self.config
        return [Group(list(self.student.weights), Rate(config.lr, config.warmup, config.steps))]

    def state(self) -> State:
        """The first teacher; everything else follows from the seed."""
        return {"down_PRD": self.first[0], "up_KR": self.first[1]}

    @torch.no_grad()
    def _pool(self) -> list[Lesson]:
        generator = torch.Generator().manual_seed(self.seed + _POOL_SEED)
        contexts = FrozenContexts(self.student)
        order = torch.randperm(len(self.teachers), generator=generator).tolist()
        chosen = [self.teachers[order[index % len(order)]] for index in range(self.config.pool)]
        return [self._lesson(teacher, contexts, generator) for teacher in chosen]

    def _lesson(self, teacher: Adapter, contexts: FrozenContexts, generator: torch.Generator) -> Lesson:
        picked = torch.randint(len(self.latents_NCHW), (self.batch_size,), generator=generator)
        trial = scores.draw_trial(self.student.base, self.latents_NCHW[picked], generator)
        context_PLD = contexts(self.prompts(generator, list(teacher.tokens)[-1]))
        first = self._ask(*self.first, trial, context_PLD, taught=0)
        second = self._ask(teacher.down_PRD, teacher.up_KR, trial, context_PLD, taught=2)
        for answer in (first, second):
            self.scale.update(trial.t_S, answer.errors_SP)
        return Lesson(trial, context_PLD, first, second)

    def _ask(self, down_PRD: Tensor, up_KR: Tensor, trial: scores.Trial, context_PLD: Tensor, *, taught: int) -> Answer:
        base = self.student.base
        kv_PLK = project(base, context_PLD, down_PRD, up_KR, self.student.scale)
        kv_SPLK = kv_PLK.expand(len(trial.t_S), *kv_PLK.shape)
        predicted = scores.predict(base, trial, kv_SPLK, precision=self.precision)
        return Answer(scores.mean_square(predicted, trial.target_SCHW.unsqueeze(1)), predicted[:, taught])

    def loss(self, step: int) -> Tensor:
        """L_DSC of this worker's rows of one minibatch of the pool."""
        drawn = torch.randint(len(self.pool), (), generator=step_generator(self.seed, step))
        lesson = share_of(self.pool[int(drawn)], self.shard)
        kv_PLK = self.model(lesson.context_PLD)
        kv_SPLK = kv_PLK.expand(len(lesson.trial.t_S), *kv_PLK.shape)
        predicted = scores.predict(self.student.base, lesson.trial, kv_SPLK, precision=self.precision)
        losses_S = distillation_loss(predicted, lesson, self.scale(lesson.trial.t_S), self.tau)
        # DDP waits for a gradient of every parameter; the embedding's is zero, and no optimizer steps along it.
        return self.shard.share(losses_S, self.batch_size) + 0 * self.student.token.sum()


def share_of(lesson: Lesson, shard: Shard) -> Lesson:
    """One worker's rows."""
    rows = shard.rows
    first, second = (Answer(a.errors_SP[rows], a.target_SCHW[rows]) for a in (lesson.first, lesson.second))
    return Lesson(lesson.trial.rows(rows), lesson.context_PLD, first, second)


class DSC(Method):
    """DSC alone."""

    name = "dsc"
    distils = True
