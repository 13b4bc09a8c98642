"""Random pipelines of exactly the architectures of Stable Diffusion 1.5, 2.1 and XL, with fewer channels and layers.

Block types, projections, activations, padding tokens, pooled embeddings and schedulers are those of the published
configurations; written and read as real checkpoints are.
"""

from pathlib import Path
from typing import Any

import torch

from services.base_model import EMBEDDED

ARCHITECTURES = ("sd15", "sd21", "sdxl")
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_CROSS = "CrossAttn{}Block2D"
_FOUR_BLOCKS = {
    "down_block_types": (*(_CROSS.format("Down"),) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *(_CROSS.format("Up"),) * 3),
}
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        **_FOUR_BLOCKS,
        "block_out_channels": (16, 32, 32, 32),
        "attention_head_dim": 8,
        "cross_attention_dim": 24,
    },
    "sd21": {
        **_FOUR_BLOCKS,
        "block_out_channels": (8, 16, 32, 32),
        "attention_head_dim": [1, 2, 4, 4],
        "cross_attention_dim": 40,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", *(_CROSS.format("Down"),) * 2),
        "up_block_types": (*(_CROSS.format("Up"),) * 2, "UpBlock2D"),
        "block_out_channels": (8, 16, 32),
        "attention_head_dim": [1, 2, 4],
        "cross_attention_dim": 64,
        "transformer_layers_per_block": [1, 2, 3],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    },
}


def save(architecture: str, prediction_type: str, folder: Path) -> None:
    """Write a pipeline of one of `ARCHITECTURES`."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(ARCHITECTURES.index(architecture))
    unet = UNet2DConditionModel(sample_size=8, layers_per_block=2, norm_num_groups=4, **_UNETS[architecture])
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025 if architecture == "sdxl" else 0.18215,
    )
    kinds = {"sd15": PNDMScheduler, "sd21": DDIMScheduler, "sdxl": EulerDiscreteScheduler}
    own = {"clip_sample": False, "set_alpha_to_one": False} if architecture == "sd21" else {}
    scheduler = kinds[architecture](**_SCHEDULE, **own, prediction_type=prediction_type)
    if architecture == "sdxl":
        StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=_text_encoder(24, "quick_gelu"),
            text_encoder_2=_text_encoder(40, "gelu", projected=True),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(pad="!"),
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        ).save_pretrained(folder)
        return
    later = architecture == "sd21"
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=_text_encoder(40, "gelu") if later else _text_encoder(24, "quick_gelu"),
        tokenizer=_tokenizer(pad="!") if later else _tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _tokenizer(**tokens: str) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", **{f"{k}_token": v for k, v in tokens.items()})


def _text_encoder(width: int, activation: str, *, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act=activation,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)
