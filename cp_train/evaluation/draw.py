"""Fixed-seed pictures of the concepts, drawn with diffusers' own DDIM scheduler on the text-free U-Net."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cp_train.denoise import Precision
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition

STEPS = 20
GUIDANCE = 3.0
ROWS_AT_ONCE = 16


def draw(base: BaseModel, adapter: Adapter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures of every prompt from every seed, uint8 [prompts, seeds, H, W, 3]."""
    return draw_conditioned(base, condition(base, [*prompts, ""], adapter), seeds)


def draw_conditioned(
    base: BaseModel,
    kv_PLK: Tensor,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    precision: Precision = "float32",
) -> Tensor:
    """The same of prompts whose keys and values are ready; the last of them is the empty one, and is not drawn.

    `precision` "bfloat16" lets the U-Net multiply in bfloat16 (autocast).
    """
    kv_PLK, prompts = kv_PLK.to(base.unet.dtype), len(kv_PLK) - 1
    noise = torch.stack([_noise(base, seed) for seed in seeds])
    latents = noise.repeat(prompts, 1, 1, 1)
    rows = kv_PLK[:-1].repeat_interleave(len(seeds), 0)
    pairs = zip(latents.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE), strict=True)
    with torch.autocast(base.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        denoised = [_denoise(base, chunk, kv_BLK, kv_PLK[-1:], steps or STEPS) for chunk, kv_BLK in pairs]
    drawn = [base.decode_latents(latents) for latents in denoised]
    pictures = torch.cat(drawn).cpu()
    return pictures.view(prompts, len(seeds), *pictures.shape[1:])


def _noise(base: BaseModel, seed: int) -> Tensor:
    side = int(base.unet.config.sample_size)
    return torch.randn(base.latent_channels, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _denoise(base: BaseModel, noise_BCHW: Tensor, kv_BLK: Tensor, uncond_1LK: Tensor, steps: int) -> Tensor:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(base.scheduler_config)
    scheduler.set_timesteps(steps)
    both = torch.cat([uncond_1LK.expand_as(kv_BLK), kv_BLK])
    x = noise_BCHW.to(base.device, base.unet.dtype)
    for t in scheduler.timesteps:
        uncond, cond = base.unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.to(x.dtype).chunk(2)
        x = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, x).prev_sample
    return x


def grid(pictures_PSHWC: Tensor) -> bytes:
    """One PNG: a row for each prompt, a column for each seed."""
    rows = pictures_PSHWC.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    image = Image.fromarray(np.ascontiguousarray(rows.numpy()))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
