"""The frozen pipeline that everything is drawn by: the embedded one, a directory, or a Hugging Face hub id.

Its U-Net is stripped of text: every cross-attention gets its keys and values ready-made (see `conditioning.py`), so one
U-Net serves training, scoring and every adapter at once. Nothing of a base is ever changed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from services.adapter import Layout, Projection
from services.attention import install_processors
from services.errors import InputError, UnavailableError
from services.manifest import BaseRef, sha256_of_files
from services.second_encoder import PARTS, SIZES, SecondEncoder, is_xl, load_second

EMBEDDED = Path(__file__).parent / "embedded" / "pipeline"
COMPONENTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
"""Of every base; `second_encoder.PARTS` are read as well where they are."""
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
}
"""The one weight file that is read of a component; half-precision and other variants beside it are not."""
SCHEDULER = "scheduler_config.json"
_TEXT = (".json", ".txt")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True, eq=False)
class BaseOutline:
    """What can be known of a base without loading its weights.

    Attributes:
        ref: id and revision digest.
        tokenizer: of the text encoder.
        layout: the U-Net's cross-attention projections.
    """

    ref: BaseRef
    tokenizer: Any
    layout: Layout


@dataclass(frozen=True, eq=False)
class BaseModel(BaseOutline):
    """A pipeline in the layout of Stable Diffusion 1.x, 2.x or XL, frozen, in evaluation mode.

    Attributes:
        text_encoder, vae, unet: the pipeline's parts; the U-Net takes packed K/V.
        scheduler_config: configuration of the noise schedule, as diffusers' pipeline uses it.
        weight_KD: W of every projection, stacked [K, text width].
        second: what SDXL has besides; None for 1.x and 2.x.
    """

    text_encoder: nn.Module
    vae: Any
    unet: Any
    scheduler_config: dict[str, Any]
    weight_KD: Tensor
    second: SecondEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.weight_KD.device

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """One, or SDXL's two."""
        return (self.text_encoder, self.second.text_encoder) if self.second else (self.text_encoder,)

    @property
    def packed_width(self) -> int:
        """Columns of the packed tensor that the U-Net takes: K, and behind them E of SDXL's added vector."""
        return self.layout.total + (self.second.width if self.second else 0)

    @property
    def prediction_type(self) -> str:
        """`epsilon` or `v_prediction`."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def vae_factor(self) -> int:
        """Picture pixels per latent pixel, along one side."""
        return _vae_factor(self.vae)

    @property
    def image_size(self) -> int:
        """Side of the square picture that the base was made for, in pixels."""
        return int(self.unet.config.sample_size) * self.vae_factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar_t of the training schedule, float32 [timesteps]."""
        from diffusers import DDPMScheduler

        keys = (
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "trained_betas",
            "rescale_betas_zero_snr",
        )
        config = {key: self.scheduler_config[key] for key in keys if key in self.scheduler_config}
        alphas: Tensor = DDPMScheduler(**config).alphas_cumprod
        return alphas.float().to(self.device)

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """Latents (mode of the posterior, scaled) of pictures in [-1, 1]."""
        with torch.no_grad():
            latents: Tensor = self.vae.encode(images_BCHW.to(self.device)).latent_dist.mode()
        return latents * float(self.vae.config.scaling_factor)

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures as uint8 [B, H, W, 3], the way diffusers rounds them."""
        with torch.no_grad():
            images: Tensor = self.vae.decode(latents_BCHW / self.vae.config.scaling_factor).sample
        images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (images.float() * 255).round().to(torch.uint8)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def use_threads(count: int) -> None:
    """Let torch use so many CPU threads; 0 is all cores. Ray gives a process one, whatever the machine has."""
    torch.set_num_threads(count or os.cpu_count() or 1)


def resolve(reference: str) -> Path:
    """The directory of a base: `embedded`, a path, or a hub id (downloaded, safetensors only).

    Raises:
        InputError: there is no such base.
        UnavailableError: the hub does not answer.
    """
    if reference == "embedded":
        return EMBEDDED
    path = Path(reference).expanduser()
    if (path / "model_index.json").is_file():
        return path
    if path.exists() or reference.startswith((".", "/", "~")) or reference.count("/") != 1:
        raise InputError(
            f"base: {reference!r} is no pipeline (a directory with a model_index.json, a hub id, or `embedded`).",
            param="base",
        )
    return _download(reference)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    texts = [f"{part}/*{end}" for part in (*COMPONENTS, *PARTS) for end in _TEXT]
    weights = [f"{part}/{name}" for part, name in WEIGHTS.items()]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["model_index.json", *texts, *weights]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"base: the hub has no repository {hub_id!r}.", param="base") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnavailableError(f"base: {hub_id!r} could not be downloaded; give a local directory.") from error


def revision_of(directory: Path) -> str:
    """Digest of every file of a pipeline that is read: relative names and contents.

    Raises:
        OSError: a component is missing, or its weights are not there in safetensors.
    """
    return f"sha256:{sha256_of_files(directory, _files(directory))}"


def _files(directory: Path) -> Iterator[Path]:
    yield directory / "model_index.json"
    for part in (*COMPONENTS, *(part for part in PARTS if (directory / part).is_dir())):
        texts = {p for p in (directory / part).iterdir() if p.suffix in _TEXT}
        yield from sorted(texts | ({directory / part / WEIGHTS[part]} if part in WEIGHTS else set()))


def load_base(reference: str = "embedded", *, device: str = "auto", dtype: torch.dtype = torch.float32) -> BaseModel:
    """Load a base, freeze it, and take the text projections out of its U-Net.

    Raises:
        InputError: no such base, or not the layout of Stable Diffusion 1.x, 2.x or XL in safetensors.
        UnavailableError: the hub does not answer.
    """
    directory = resolve(reference)
    outline = load_outline(reference)
    with _layout_errors(reference):
        text_encoder, vae, unet, second = _load_modules(directory, outline.layout, dtype)
    where = pick_device(device)
    for module in (text_encoder, vae, unet, *((second.text_encoder, second.addition) if second else ())):
        module.requires_grad_(requires_grad=False).eval().to(where)
    layout = outline.layout
    weight = torch.cat([unet.get_submodule(p.name).weight for p in layout.projections]).float()
    install_processors(unet, layout)
    # What StableDiffusionPipeline corrects in a scheduler's configuration.
    scheduler = {**_load_json(directory / "scheduler" / SCHEDULER), "clip_sample": False, "steps_offset": 1}
    return BaseModel(outline.ref, outline.tokenizer, layout, text_encoder, vae, unet, scheduler, weight, second)


def load_outline(reference: str = "embedded") -> BaseOutline:
    """What can be known of a base without loading its weights. Raises as `load_base` does."""
    from diffusers import UNet2DConditionModel

    directory = resolve(reference)
    with _layout_errors(reference):
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(_load_json(directory / "unet" / "config.json"))
        tokenizer = _load_tokenizer(directory)
        _check_fit(directory, unet, tokenizer)
        ref = BaseRef(id=reference, revision=revision_of(directory))
    return BaseOutline(ref, tokenizer, _layout(unet))


class _UnfitError(ValueError):
    """Why a pipeline is not one of ours, in words for a person."""


@contextmanager
def _layout_errors(reference: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        why = str(error) if isinstance(error, _UnfitError) else type(error).__name__
        raise InputError(
            f"base: {reference!r} is not a Stable Diffusion 1.x, 2.x or XL pipeline in safetensors ({why}).",
            param="base",
        ) from error


def _check_fit(directory: Path, unet: Any, tokenizer: Any) -> None:
    """Refuse, before anything is loaded, the relatives that would load and then draw or fail in other ways."""
    config, text = unet.config, _load_json(directory / "text_encoder" / "config.json")
    second = _load_json(directory / "text_encoder_2" / "config.json") if is_xl(unet) else {}
    vae = _load_json(directory / "vae" / "config.json")
    prediction = _load_json(directory / "scheduler" / SCHEDULER).get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise _UnfitError(f"its U-Net predicts {prediction!r}, not {' or '.join(PREDICTION_TYPES)}")
    if {config.in_channels, config.out_channels} != {vae.get("latent_channels", 4)}:
        raise _UnfitError("its U-Net takes more than the VAE's latents, as for inpainting")
    if config.class_embed_type or config.num_class_embeds or (config.addition_embed_type and not second):
        raise _UnfitError("its U-Net is conditioned on more than time and text")
    added = second.get("projection_dim", 0) + SIZES * (config.addition_time_embed_dim or 0)
    if second and config.projection_class_embeddings_input_dim != added:
        raise _UnfitError("its U-Net is conditioned on other numbers than SDXL's")
    if second and _vocabulary(directory, "tokenizer") != _vocabulary(directory, "tokenizer_2"):
        raise _UnfitError("its two tokenizers differ")
    kinds = {name.removesuffix(".processor").rpartition(".")[2] for name in unet.attn_processors}
    if kinds != {"attn1", "attn2"} or config.only_cross_attention or config.dual_cross_attention:
        raise _UnfitError("its U-Net has other attention layers")
    if config.cross_attention_dim != text.get("hidden_size", 0) + second.get("hidden_size", 0):
        raise _UnfitError("the text encoder's width is not the one that the U-Net reads")
    if tokenizer.model_max_length > text.get("max_position_embeddings", 77):
        raise _UnfitError("the tokenizer's model_max_length is more than the text encoder takes")


def _load_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_bytes())
    return values


def _load_tokenizer(directory: Path, part: str = "tokenizer") -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(directory / part, local_files_only=True)


def _vocabulary(directory: Path, part: str) -> dict[str, int]:
    words: dict[str, int] = _load_tokenizer(directory, part).get_vocab()
    return words


def _load_modules(directory: Path, layout: Layout, dtype: torch.dtype) -> tuple[Any, Any, Any, SecondEncoder | None]:
    """Text encoder, VAE, U-Net and second encoder one by one: importing the whole pipeline class takes seconds more."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    load = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    text_encoder = CLIPTextModel.from_pretrained(directory / "text_encoder", **load)
    vae = AutoencoderKL.from_pretrained(directory / "vae", **load)
    unet = UNet2DConditionModel.from_pretrained(directory / "unet", **load)
    if not is_xl(unet):
        return text_encoder, vae, unet, None
    zero_empty = bool(_load_json(directory / "model_index.json").get("force_zeros_for_empty_prompt", True))
    size = int(unet.config.sample_size) * _vae_factor(vae)
    return text_encoder, vae, unet, load_second(directory, unet, size, layout.total, zero_empty=zero_empty, **load)


def _vae_factor(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _layout(unet: Any) -> Layout:
    projections = [
        Projection(f"{name}.{part}", getattr(module, part).out_features)
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
        for part in ("to_k", "to_v")
    ]
    return Layout(tuple(projections), int(unet.config.cross_attention_dim))
