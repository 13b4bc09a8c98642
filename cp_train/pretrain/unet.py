"""The denoiser: a conditional U-Net on the VAE's latents (diffusers' UNet2DConditionModel, arXiv 2112.10752).

With a_t the cumulative signal share of a schedule whose last step has none (zero terminal SNR, arXiv 2305.08891):

    x_t = sqrt(a_t) z + sqrt(1 - a_t) n,    v = sqrt(a_t) n - sqrt(1 - a_t) z,    loss = w_t |v - v(x_t, t, e)|^2

w_t = min(SNR, g) / (SNR + 1), scaled to mean 1 over t (min-SNR, arXiv 2303.09556), or 1 where no g is given. The
prompt's embedding e comes from the frozen text tower and is replaced by that of "" one time in ten, for
classifier-free guidance (arXiv 2207.12598).
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTokenizer

from cp_train.pretrain.clip import encode
from cp_train.pretrain.loop import Schedule, Trainer, autocast, dice, generator
from cp_train.pretrain.pool import Pool
from services.manifest import sha256_of_files

_SCHEDULE = Schedule(steps=14_000, lr=5e-4, warmup=500, decay=0.25, ema=0.9997, every=250)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Size and training of the U-Net; the finest level has no attention."""

    channels: tuple[int, ...] = (64, 128, 256)
    heads: int = 4
    norm_groups: int = 32
    batch: int = 16
    unconditional: float = 0.1
    snr_cap: float | None = None
    """g, the largest weight of a nearly clean picture."""
    focus: float = 2.5
    """q: timesteps are drawn as T u^(1/q), u uniform; above 1 it favours the noisy ones, where the prompt decides."""
    detail: float = 1.25
    """q when what is drawn is settled and how finely is not: after `coarse`, or from the start on a trained one."""
    coarse: float = 0.5
    """Share of the steps."""
    simple: float = 2 / 7
    """Share of the steps over which, at first, what is shown turns from plain pictures of one hand to everything
    (`pool.py`); a trained one is shown everything."""
    seed: int = 14
    schedule: Schedule = field(default_factory=lambda: _SCHEDULE)

    def curriculum(self, step: int) -> tuple[float, float]:
        """How simple the pictures of a step are, 1..0, and the timesteps' q."""
        done = step / self.schedule.steps
        simple = max(0.0, 1 - done / self.simple) if self.simple else 0.0
        return simple, self.focus if done < self.coarse else self.detail

    def trained_on(self) -> "UNetConfig":
        """The same for a U-Net that has learned what to draw already."""
        return replace(self, coarse=0.0, simple=0.0)


def noise_schedule() -> Any:
    """The scheduler shipped with the pipeline; its `alphas_cumprod` are what is trained on."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def build(config: UNetConfig, *, latent: int, size: int, context: int) -> Any:
    """An untrained U-Net for latents [B, latent, size, size] and text embeddings [B, L, context]."""
    torch.manual_seed(config.seed)
    coarse = len(config.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=latent,
        out_channels=latent,
        block_out_channels=config.channels,
        layers_per_block=1,
        attention_head_dim=config.heads,
        cross_attention_dim=context,
        norm_num_groups=config.norm_groups,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * coarse),
        up_block_types=(*("CrossAttnUpBlock2D",) * coarse, "UpBlock2D"),
    )
    unet.set_attn_processor(AttnProcessor())  # the fused one's backward is slow at this few tokens
    return unet


def train(
    config: UNetConfig,
    pool: Pool,
    text_tower: Any,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    start: Path | None = None,
) -> Any:
    """The trained U-Net with averaged weights; `start` is the folder of one to begin from instead of from nothing."""
    _, latent, size, _ = pool.latents_NCHW.shape
    unet = build(config, latent=latent, size=size, context=text_tower.config.hidden_size)
    settings = {**asdict(config), "start": sha256_of_files(start) if start else None}
    if start is not None:
        config = config.trained_on()
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(start).state_dict())
    trainer = Trainer("unet", unet, config.schedule, checkpoint, settings)
    noising = Noising.capped(config.snr_cap)
    recent: list[float] = []

    def loss(step: int) -> tuple[Tensor, str]:
        chance, noise = dice(config.seed, step), generator(config.seed, step)
        simple, focus = config.curriculum(step)
        z_BCHW, texts = pool.draw(config.batch, chance, simple=simple)
        texts = ["" if chance.random() < config.unconditional else text for text in texts]
        value = objective(unet, z_BCHW, embed(text_tower, tokenizer, texts), noising, noise, focus=focus)
        recent.append(value.item())
        return value, f"loss {sum(recent[-200:]) / len(recent[-200:]):.4f}"

    trainer.run(loss)
    return trainer.averaged()


@torch.no_grad()
def embed(text_tower: Any, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """What the U-Net attends to [B, L, D], each distinct text encoded once."""
    distinct = list(dict.fromkeys(texts))
    with autocast():
        states: Tensor = text_tower(**encode(tokenizer, distinct)).last_hidden_state.float()
    return states[[distinct.index(text) for text in texts]]


def objective(
    unet: Any,
    z_BCHW: Tensor,
    context_BLD: Tensor,
    noising: "Noising",
    chance: torch.Generator,
    *,
    focus: float = 1.0,
) -> Tensor:
    """The loss above at one timestep per latent, the timesteps spread over the schedule as `focus` says."""
    count, steps = len(z_BCHW), len(noising.alphas_T)
    even = (torch.randperm(count, generator=chance) + torch.rand(count, generator=chance)) / count
    t_B = (even ** (1 / focus) * steps).long().clamp(max=steps - 1)
    noise = torch.randn(z_BCHW.shape, generator=chance)
    a_B = noising.alphas_T[t_B].view(-1, 1, 1, 1)
    x_t = a_B.sqrt() * z_BCHW + (1 - a_B).sqrt() * noise
    v = a_B.sqrt() * noise - (1 - a_B).sqrt() * z_BCHW
    with autocast():
        guess = unet(x_t, t_B, context_BLD).sample
    error_B = (guess.float() - v).square().mean((1, 2, 3))
    weighted: Tensor = error_B * noising.weights_T[t_B]
    return weighted.mean()


@dataclass(frozen=True)
class Noising:
    """Signal share a_t and loss weight w_t of every timestep."""

    alphas_T: Tensor
    weights_T: Tensor

    @classmethod
    def capped(cls, snr_cap: float | None = None) -> "Noising":
        """The pipeline's schedule with min-SNR weights, g = `snr_cap`; without it all weigh the same."""
        alphas_T: Tensor = noise_schedule().alphas_cumprod
        if snr_cap is None:
            return cls(alphas_T, torch.ones_like(alphas_T))
        snr_T = alphas_T / (1 - alphas_T)
        w_T = snr_T.clamp(max=snr_cap) / (snr_T + 1)
        return cls(alphas_T, w_T / w_T.mean())
