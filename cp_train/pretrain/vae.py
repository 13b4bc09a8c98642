"""The autoencoder: 64x64 pictures to 16x16 latents and back (diffusers' AutoencoderKL, arXiv 2112.10752).

Loss, with x the picture, y its reconstruction, D differences of neighbouring pixels and q = N(mu, sigma^2):

    |x - y| + 2 (x - y)^2 + 0.5 |D x - D y| + kl * KL(q || N(0, 1))          (means over elements)

After training each latent channel is brought to mean 0 and deviation 1 by folding the affine map into
`quant_conv` and `post_quant_conv`, so that `scaling_factor` is 1.
"""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from cp_train.pretrain.compose import GROUNDS, TINTS, paired, tinted
from cp_train.pretrain.loop import Schedule, Trainer, autocast, dice, generator
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.render import Pixels, on
from cp_train.pretrain.scenes import tensor

_TINTED, _PAIRED, _GROUNDED, _MIRRORED = 0.15, 0.2, 0.3, 0.5
"""Shares of the training pictures."""

_SCHEDULE = Schedule(steps=3400, lr=1e-3, decay=0.4, weight_decay=0.0, ema=0.998)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Size and training of the autoencoder; f = 2 ** (len(channels) - 1)."""

    channels: tuple[int, ...] = (16, 32, 64)
    latent: int = 4
    norm_groups: int = 8
    batch: int = 8
    kl: float = 1e-5
    seed: int = 11
    schedule: Schedule = field(default_factory=lambda: _SCHEDULE)


def build(config: VaeConfig, size: int = 64) -> Any:
    """An untrained AutoencoderKL."""
    torch.manual_seed(config.seed)
    depth = len(config.channels)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent,
        norm_num_groups=config.norm_groups,
        sample_size=size,
        scaling_factor=1.0,
    )
    _start_sharp(model.quant_conv, config.latent)
    return model


@torch.no_grad()
def _start_sharp(quant: Any, latent: int) -> None:
    """Begin with sigma = 0.05: at the usual sigma of 1 the decoder first learns to ignore its latents."""
    quant.weight[latent:] = 0
    quant.bias[latent:] = 2 * float(np.log(0.05))


def train(config: VaeConfig, pictures: Library, checkpoint: Path) -> Any:
    """The trained autoencoder with averaged weights and standard latents."""
    size = pictures.rgba_NHW4.shape[1]
    trainer = Trainer("vae", build(config, size), config.schedule, checkpoint, asdict(config))
    trainer.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> tuple[Tensor, str]:
        chance = dice(config.seed, step)
        x_BCHW = tensor([augmented(pictures, chance) for _ in range(config.batch)])
        return objective(trainer.model, x_BCHW, generator(config.seed, step), config.kl)

    trainer.run(loss)
    model = trainer.averaged()
    standardise(model, [on(rgba) for rgba in pictures.rgba_NHW4[::7]])
    return model


def augmented(pictures: Library, chance: random.Random) -> Pixels:
    """A random picture: mirrored, recoloured, beside another, on a ground, each some of the time."""
    rgba = _any(pictures, chance)
    if chance.random() < _TINTED:
        rgba = tinted(rgba, chance.choice(list(TINTS.values())))
    if chance.random() < _PAIRED:
        rgba = paired(rgba, _any(pictures, chance))
    ground = chance.choice(list(GROUNDS.values())) if chance.random() < _GROUNDED else (255, 255, 255)
    return on(rgba, ground)


def _any(pictures: Library, chance: random.Random) -> Pixels:
    rgba = pictures.rgba_NHW4[chance.randrange(len(pictures))]
    return np.ascontiguousarray(rgba[:, ::-1]) if chance.random() < _MIRRORED else rgba


def objective(model: Any, x_BCHW: Tensor, chance: torch.Generator, kl: float) -> tuple[Tensor, str]:
    """The loss above, and the batch's reconstruction error in dB."""
    with autocast():
        posterior = model.encode(x_BCHW.to(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=chance)
        y_BCHW = model.decode(posterior.mean + posterior.std * noise).sample
    error = y_BCHW.float() - x_BCHW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mu, var, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
    divergence = 0.5 * (mu.square() + var - 1 - logvar).mean()
    squared = error.square().mean()
    note = f"{decibel(squared.item()):.2f} dB, sigma {var.mean().sqrt().item():.3f}"
    return error.abs().mean() + 2 * squared + 0.25 * edges + kl * divergence, note


def decibel(squared_error: float) -> float:
    """PSNR of pictures in -1..1 with this mean squared error."""
    return float(10 * np.log10(4 / squared_error))


@torch.no_grad()
def standardise(model: Any, pictures: list[Pixels]) -> None:
    """Fold the latents' mean and deviation over these pictures into the two 1x1 convolutions."""
    z_NCHW = encode(model, tensor(pictures))
    mean, std = z_NCHW.mean((0, 2, 3)), z_NCHW.std((0, 2, 3))
    quant, post = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(model: Any, x_NCHW: Tensor, batch: int = 32) -> Tensor:
    """The latents' means [N, C, h, w], float32."""
    return torch.cat([model.encode(x).latent_dist.mode() for x in x_NCHW.split(batch)])


@torch.no_grad()
def decode(model: Any, z_NCHW: Tensor, batch: int = 32) -> Tensor:
    """Pictures [N, 3, H, W] in -1..1 from latents."""
    return torch.cat([model.decode(z).sample.clamp(-1, 1) for z in z_NCHW.split(batch)])


def reconstruction(model: Any, pictures: list[Pixels]) -> float:
    """Mean over pictures of the PSNR in dB."""
    x_NCHW = tensor(pictures)
    y_NCHW = decode(model, encode(model, x_NCHW))
    squared = (x_NCHW - y_NCHW).square().mean((1, 2, 3))
    return float(np.mean([decibel(max(1e-9, value)) for value in squared.tolist()]))
