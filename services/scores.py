"""Diffusion-classifier scores (Li et al., arXiv 2303.16203; as used by Jha et al., arXiv 2410.00700).

For an image x_0, a timestep t and a noise eps, shared by all prompts:

    e_i = mean over elements of (y - y_theta(x_t, t, prompt_i))^2         P_i = softmax_i(-e_i / (tau s(t)))

with y the target the base was trained on (eps, or v = sqrt(ab) eps - sqrt(1 - ab) x_0: an eps-error would vanish at the
last t of a v-prediction base). Ours is the scale: s(t) is the running mean of e over concepts in a bucket of 100
timesteps, so that a 5% better error is one nat at tau = 0.05 whatever the timestep.
With several trials the logits -e / (tau s) are averaged before the softmax.
Letters: S samples, P prompts, L tokens, K packed width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.base_model import BaseModel

BUCKET = 100
FLOOR = 1e-4


@dataclass(frozen=True, eq=False)
class Trial:
    """One (t, eps) for each of S images, and what follows from it.

    Attributes:
        t_S: timesteps, int64.
        noisy_SCHW: x_t.
        target_SCHW: y.
    """

    t_S: Tensor
    noisy_SCHW: Tensor
    target_SCHW: Tensor

    def rows(self, which: slice | Tensor) -> "Trial":
        """Some of the samples."""
        return Trial(self.t_S[which], self.noisy_SCHW[which], self.target_SCHW[which])


def make_trial(base: BaseModel, latents_SCHW: Tensor, t_S: Tensor, noise_SCHW: Tensor) -> Trial:
    """Noise some latents: x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps, and the base's own target."""
    alpha_bar = base.alphas_cumprod[t_S].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    noisy = signal * latents_SCHW + sigma * noise_SCHW
    velocity = base.prediction_type == "v_prediction"
    return Trial(t_S, noisy, signal * noise_SCHW - sigma * latents_SCHW if velocity else noise_SCHW)


def draw_trial(base: BaseModel, latents_SCHW: Tensor, generator: torch.Generator) -> Trial:
    """A trial with t uniform over the schedule; drawn on the CPU so that every device draws the same."""
    t = torch.randint(len(base.alphas_cumprod), (len(latents_SCHW),), generator=generator)
    noise = torch.randn(latents_SCHW.shape, generator=generator)
    return make_trial(base, latents_SCHW, t.to(base.device), noise.to(base.device))


def predict(base: BaseModel, trial: Trial, kv_SPLK: Tensor, *, precision: str = "float32") -> Tensor:
    """y_theta of every sample under every prompt, float32 [S, P, C, H, W], in one U-Net batch that shares x_t.

    `precision` "bfloat16" lets the U-Net multiply in bfloat16 (autocast).
    """
    samples, prompts = kv_SPLK.shape[:2]
    noisy = trial.noisy_SCHW.repeat_interleave(prompts, 0).to(base.unet.dtype)
    t = trial.t_S.repeat_interleave(prompts)
    kv_BLK = kv_SPLK.flatten(0, 1).to(noisy.dtype)
    with torch.autocast(base.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        predicted = base.unet(noisy, t, encoder_hidden_states=kv_BLK).sample
    found: Tensor = predicted.float().unflatten(0, (samples, prompts))
    return found


def mean_square(left_SPCHW: Tensor, right_SPCHW: Tensor) -> Tensor:
    """Mean over the elements of the squared difference of two predictions, [S, P]."""
    return (left_SPCHW - right_SPCHW).square().flatten(2).mean(-1)


def errors(base: BaseModel, trial: Trial, kv_SPLK: Tensor, *, precision: str = "float32") -> Tensor:
    """e_SP, float32: the error of every sample under every prompt."""
    return mean_square(predict(base, trial, kv_SPLK, precision=precision), trial.target_SCHW.unsqueeze(1))


@dataclass(eq=False)
class ErrorScale:
    """s(t): the running mean of the errors in each bucket of timesteps, detached, floored at 1e-4."""

    timesteps: int = 1000
    total: Tensor = field(init=False)
    count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        buckets = (self.timesteps + BUCKET - 1) // BUCKET
        self.total, self.count = torch.zeros(buckets), torch.zeros(buckets)

    def update(self, t_S: Tensor, errors_SP: Tensor) -> None:
        """Take in the errors of one trial."""
        bucket = (t_S // BUCKET).cpu()
        self.total.index_add_(0, bucket, errors_SP.detach().mean(1).cpu())
        self.count.index_add_(0, bucket, torch.ones(len(bucket)))

    def __call__(self, t_S: Tensor) -> Tensor:
        """s(t) for each sample, [S]. A bucket must have been updated before it is read."""
        mean = (self.total / self.count).clamp_min(FLOOR)
        return mean[(t_S // BUCKET).cpu()].to(t_S.device)


def log_probabilities(errors_SP: Tensor, scale_S: Tensor, tau: float, *, trials: int = 1) -> Tensor:
    """log P_SP = log softmax over the prompts of -e / (tau s(t)).

    With `trials` the rows are samples x trials, sample by sample, and a sample's logits are averaged: [S / trials, P].
    """
    logits_SP = -errors_SP / (tau * scale_S.unsqueeze(1))
    mean_SP: Tensor = logits_SP.unflatten(0, (-1, trials)).mean(1)
    return mean_SP.log_softmax(1)


def classify(
    base: BaseModel,
    latent_CHW: Tensor,
    kv_PLK: Tensor,
    *,
    trials: int,
    tau: float,
    seed: int,
    batch: int = 32,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """P of each prompt for one image, [P], from many trials: softmax of the mean of -e / (tau s(t)) over trials.

    `check` is called before each pass of the U-Net, and may raise to end this early.
    """
    generator = torch.Generator().manual_seed(seed)
    scale, found = ErrorScale(len(base.alphas_cumprod)), []
    group = max(1, batch // len(kv_PLK))
    for start in range(0, trials, group):
        check()
        size = min(group, trials - start)
        trial = draw_trial(base, latent_CHW.expand(size, *latent_CHW.shape), generator)
        with torch.no_grad():
            e_SP = errors(base, trial, kv_PLK.expand(size, *kv_PLK.shape))
        scale.update(trial.t_S, e_SP)
        found.append((trial.t_S, e_SP))
    logits = torch.cat([-e_SP / (tau * scale(t_S).unsqueeze(1)) for t_S, e_SP in found]).mean(0)
    return logits.softmax(0)
