"""Figures of a version that need its concept's images: taken right after learning, while they are still there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from services import scores
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition

SEED = 20_241_000
IMAGES = 8
TRIALS = 8
FEW, GLIMPSES = 4, 2


def denoising_loss(base: BaseModel, adapter: Adapter, latents_NCHW: Tensor, prompt: str, *, repeats: int = 4) -> float:
    """Mean denoising error of some images under one prompt, over fixed timesteps and noise."""
    return fixed_noise_loss(base, latents_NCHW, condition(base, [prompt], adapter), repeats=repeats)


def fixed_noise_loss(base: BaseModel, latents_NCHW: Tensor, kv_1LK: Tensor, *, repeats: int = 4) -> float:
    """The same of a prompt whose keys and values are ready, [1, L, K]."""
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for _ in range(repeats):
        trial = scores.draw_trial(base, latents_NCHW, generator)
        with torch.no_grad():
            found.append(scores.errors(base, trial, kv_1LK.expand(len(latents_NCHW), 1, *kv_1LK.shape[1:])))
    return torch.cat(found).mean().item()


def dc_accuracy(
    base: BaseModel, adapter: Adapter, latents_NCHW: Tensor, prompts: Sequence[str], *, tau: float
) -> float:
    """Share of images that diffusion-classifier scores put into `prompts[0]`, not into one of the others."""
    kv_PLK = condition(base, prompts, adapter)
    wins = [
        int(scores.classify(base, latent, kv_PLK, trials=TRIALS, tau=tau, seed=SEED).argmax()) == 0
        for latent in latents_NCHW[:IMAGES]
    ]
    return sum(wins) / len(wins)


def dc_score(base: BaseModel, adapter: Adapter, latents_NCHW: Tensor, prompts: Sequence[str], *, tau: float) -> float:
    """Mean probability that diffusion-classifier scores give `prompts[0]`: a quick look, on few images and trials."""
    kv_PLK = condition(base, prompts, adapter)
    found = [
        scores.classify(base, latent, kv_PLK, trials=GLIMPSES, tau=tau, seed=SEED)[0] for latent in latents_NCHW[:FEW]
    ]
    return torch.stack(found).mean().item()


def trial_logits(base: BaseModel, latents_NCHW: Tensor, kv_PLK: Tensor, *, tau: float, trials: int = TRIALS) -> Tensor:
    """-e / (tau s(t)) of every image in every trial under every prompt, [N, trials, P].

    Their mean over the trials decides, as in `scores.classify`; here s(t) is the mean over all images and trials, so
    that single trials can be compared with each other.
    """
    generator, scale = torch.Generator().manual_seed(SEED), scores.ErrorScale(len(base.alphas_cumprod))
    found = []
    for latent in latents_NCHW:
        trial = scores.draw_trial(base, latent.expand(trials, *latent.shape), generator)
        with torch.no_grad():
            errors_TP = torch.cat([scores.errors(base, trial, kv.expand(trials, 1, *kv.shape)) for kv in kv_PLK], 1)
        scale.update(trial.t_S, errors_TP)
        found.append((trial.t_S, errors_TP))
    return torch.stack([-errors_TP / (tau * scale(t_T).unsqueeze(1)) for t_T, errors_TP in found])
