"""Diagonal Fisher information of the trained weights, per sample, float32.

    F_n = E_samples[ (dL_F / dtheta)^2 ],   scaled to mean 1,   F <- gamma F + F_n        (online EWC)

L_F: see `methods/ewc_dc.py`. One backward pass through the U-Net gives every sample's gradient: theta acts through the
keys and values alone and each sample has its own copy of them, so dL/dkv comes out per sample, and the rest of the
chain, kv -> theta, is a small vectorised product (3% of the pass). Nothing is trained any more, so each prompt is
encoded once. What is left is the U-Net's, (k + 2) rows a sample, so samples are made to count: their timesteps are
stratified (one in each of as many equal stretches as there are samples; each alone is still uniform), and every image
is drawn as often as the others. 24 samples then agree with 200 to a correlation of 0.99 of the logarithms, and to 2%
in the penalty of a step of training (docs/log.md).
Letters: S samples (images), T trials of each, P prompts, L tokens, K packed width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cp_train.student import FrozenContexts, Student
from services import scores
from services.adapter import TrainingState
from services.base_model import BaseModel


@dataclass(frozen=True, kw_only=True)
class FisherConfig:
    """Settings of the Fisher pass; all ours except where said.

    Attributes:
        batches: minibatches, 100 to 500 [the paper's range].
        batch_size: images a minibatch; squares are per sample, so it matters to the number of samples alone.
        contrast: alpha, the weight of the diffusion-classifier terms.
        beta: how strongly the other concepts' cross-entropy is pushed up; 0.5.
        tau: temperature of the scores; 0.05.
        earlier: k, at most so many earlier concepts a minibatch [the paper's best: 5].
        trials: (t, eps) for each image of a minibatch; their logits are averaged [the paper's: 1].
        gamma: decay of the earlier tasks' information.
        chunk: rows (an image under a prompt) that go through the U-Net at once; 0: a whole minibatch. It bounds
            memory, and costs a second forward pass; the result is the same.
    """

    batches: int = 100
    batch_size: int = 1
    contrast: float = 1.0
    beta: float = 0.5
    tau: float = 0.05
    earlier: int = 5
    trials: int = 1
    gamma: float = 1.0
    chunk: int = 0

    def __post_init__(self) -> None:
        if min(self.batches, self.batch_size, self.trials) < 1 or self.earlier < 0 or not 0 < self.tau < math.inf:
            raise ValueError("Fisher: batches, batch_size, trials must be at least 1, tau above 0, earlier at least 0.")
        if self.chunk < 0:
            raise ValueError("Fisher: chunk must be at least 0; 0 takes a whole minibatch at once.")
        if not all(0 <= value < math.inf for value in (self.contrast, self.beta, self.gamma)):
            raise ValueError("Fisher: contrast, beta and gamma must be at least 0 and finite.")


def objective(
    errors_SP: Tensor, scale_S: Tensor, *, contrast: float, beta: float, tau: float, trials: int = 1
) -> Tensor:
    """L_F of each sample. Column 0 is the current concept, column 1 is c^0, the rest are earlier ones.

    With `trials` the rows are S x T, sample by sample, and errors and logits are averaged over the trials: [S].
    At beta = 1 the normaliser of the softmax cancels: a linear, unbounded contrast.
    """
    denoise: Tensor = errors_SP[:, 0].unflatten(0, (-1, trials)).mean(1)
    if contrast == 0:
        return denoise
    cross_entropy_SP = -scores.log_probabilities(errors_SP, scale_S, tau, trials=trials)
    others = cross_entropy_SP[:, 1:].mean(1)
    loss: Tensor = denoise + contrast * (cross_entropy_SP[:, 0] - beta * others)
    return loss


def sample_gradients(
    student: Student,
    trial: scores.Trial,
    context_PLD: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    trials: int = 1,
    chunk: int = 0,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Each sample's gradient of its own loss in the student's weights, shapes [S, ...], and the errors [S x T, P].

    `loss` maps the errors to [S]; entry s must depend on sample s's rows alone. It is called once.
    """
    kv_PLK = student(context_PLD)
    kv_SPLK = kv_PLK.detach().expand(len(trial.t_S) // trials, *kv_PLK.shape)
    if 0 < chunk < len(trial.t_S) * len(kv_PLK):
        grad_SPLK, errors_SP = _kv_gradients_by_rows(student.base, trial, kv_SPLK, loss, trials=trials, chunk=chunk)
    else:
        grad_SPLK, errors_SP = _kv_gradients(student.base, trial, kv_SPLK, loss, trials)
    gradients = torch.autograd.grad(kv_PLK, student.weights, grad_SPLK, is_grads_batched=True)
    return gradients, errors_SP


def _kv_gradients(
    base: BaseModel, trial: scores.Trial, kv_SPLK: Tensor, loss: Callable[[Tensor], Tensor], trials: int
) -> tuple[Tensor, Tensor]:
    """dL/dkv of each sample, [S, P, L, K], and the errors [S x T, P], in one pass."""
    kv_SPLK = kv_SPLK.clone().requires_grad_()
    errors_SP = scores.errors(base, trial, kv_SPLK.repeat_interleave(trials, 0))
    (grad_SPLK,) = torch.autograd.grad(loss(errors_SP).sum(), kv_SPLK)
    return grad_SPLK, errors_SP.detach()


def _kv_gradients_by_rows(
    base: BaseModel, trial: scores.Trial, kv_SPLK: Tensor, loss: Callable[[Tensor], Tensor], *, trials: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """The same in the memory of `chunk` rows, by the chain rule: all errors, then dL/de of each and its de/dkv."""
    samples, prompts = kv_SPLK.shape[:2]
    row_R = torch.arange(samples * trials * prompts, device=kv_SPLK.device)
    chunks = [(trial.rows(rows // prompts), rows // (prompts * trials), rows % prompts) for rows in row_R.split(chunk)]
    with torch.no_grad():
        found = [scores.errors(base, own, kv_SPLK[s, p].unsqueeze(1)) for own, s, p in chunks]
    errors_SP = torch.cat(found).view(samples * trials, prompts).requires_grad_()
    (slope_SP,) = torch.autograd.grad(loss(errors_SP).sum(), errors_SP)
    grad_SPLK = torch.zeros_like(kv_SPLK, memory_format=torch.contiguous_format)
    for (own, s, p), slope in zip(chunks, slope_SP.flatten().split(chunk), strict=True):
        kv_RLK = kv_SPLK[s, p].requires_grad_()
        errors_R = scores.errors(base, own, kv_RLK.unsqueeze(1)).flatten()
        grad_SPLK.index_put_((s, p), torch.autograd.grad((slope * errors_R).sum(), kv_RLK)[0], accumulate=True)
    return grad_SPLK, errors_SP.detach()


def fisher_information(
    student: Student,
    latents_NCHW: Tensor,
    prompt_sets: Callable[[torch.Generator], Sequence[str]],
    config: FisherConfig,
    *,
    seed: int,
) -> TrainingState:
    """F_n of the task just learned, scaled to mean 1.

    Args:
        student: the consolidated weights; only read.
        latents_NCHW: the task's cached latents.
        prompt_sets: draws a minibatch's prompts: current concept, c^0, then earlier concepts.
        config: see there.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    scale, contexts = scores.ErrorScale(len(student.base.alphas_cumprod)), FrozenContexts(student)
    squares = [torch.zeros_like(weight) for weight in student.weights]
    for trial in stratified_trials(student.base, latents_NCHW, config, generator):
        prompts = prompt_sets(generator)[: None if config.contrast else 1]  # the others only serve the contrast

        def loss(errors_SP: Tensor, trial: scores.Trial = trial) -> Tensor:
            scale.update(trial.t_S, errors_SP)
            s = scale(trial.t_S)
            return objective(
                errors_SP, s, contrast=config.contrast, beta=config.beta, tau=config.tau, trials=config.trials
            )

        gradients, _ = sample_gradients(
            student, trial, contexts(prompts), loss, trials=config.trials, chunk=config.chunk
        )
        squares = [total + gradient_S.square().sum(0) for total, gradient_S in zip(squares, gradients, strict=True)]
    return normalised(*squares)


def stratified_trials(
    base: BaseModel, latents_NCHW: Tensor, config: FisherConfig, generator: torch.Generator
) -> Iterator[scores.Trial]:
    """The trials of every minibatch of a pass, S x T rows, sample by sample.

    Each image is drawn as often as the others (but for one), and the timesteps of all rows of the pass lie in different
    ones of as many equal stretches of the schedule. Images and stretches come in random order.
    """
    samples = config.batches * config.batch_size
    rows, timesteps = samples * config.trials, len(base.alphas_cumprod)
    rounds = -(-samples // len(latents_NCHW))
    image_S = torch.cat([torch.randperm(len(latents_NCHW), generator=generator) for _ in range(rounds)])[:samples]
    place_R = torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator, dtype=torch.float64)
    t_R = (place_R * timesteps / rows).long().clamp_max(timesteps - 1)
    images, times = image_S.split(config.batch_size), t_R.split(config.batch_size * config.trials)
    for picked, t in zip(images, times, strict=True):
        latents = latents_NCHW[picked].repeat_interleave(config.trials, 0)
        noise = torch.randn(latents.shape, generator=generator)
        yield scores.make_trial(base, latents, t.to(base.device), noise.to(base.device))


def normalised(down_PRD: Tensor, up_KR: Tensor) -> TrainingState:
    """Scaled so that the mean over all weights of both factors is 1; zero stays zero."""
    mean = (down_PRD.sum() + up_KR.sum()) / (down_PRD.numel() + up_KR.numel())
    scale = torch.where(mean > 0, 1 / mean, 0.0)
    return TrainingState(down_PRD * scale, up_KR * scale)


def accumulate(old: TrainingState | None, new: TrainingState, *, gamma: float) -> TrainingState:
    """F <- gamma F + F_n."""
    if old is None:
        return new
    return TrainingState(gamma * old.down_PRD + new.down_PRD, gamma * old.up_KR + new.up_KR)
