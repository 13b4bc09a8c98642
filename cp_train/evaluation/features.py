"""Image features that pictures are compared by, and the agreement of a picture with its prompt.

The embedded base ships with an independent *judge*: it shares nothing with the generator, whose own CLIP would reward
colour alone. On a real Stable Diffusion base a CLIP or DINO model takes its place, by directory or hub id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from cp_train.data import AT_ONCE
from cp_train.evaluation.judge import Judge
from services.base_model import BaseModel, resolve
from services.errors import InputError
from services.manifest import sha256

AUTO = "auto"
_BATCH = 64


class Features(Protocol):
    """Pictures, uint8 [N, H, W, 3], to L2-normalised features [N, D]."""

    @property
    def digest(self) -> str:
        """Of the network's weights: features of different networks must not be compared."""
        ...

    def images(self, pictures_NHWC: Tensor) -> Tensor:
        """The features."""
        ...


def judge_folder(base: str) -> Path:
    """Where the judge of a base is, if it has one: beside its pipeline."""
    return resolve(base).parent / "judge"


def clip_folder(base: str) -> Path:
    """Where the CLIP is whose text tower a base of ours reads, if it is there: beside its pipeline."""
    return resolve(base).parent / "clip"


def open_features(reference: str, base: str) -> Features:
    """The features of that name: `auto` (the base's judge), or a folder or hub id of a judge, a CLIP or a DINO.

    Raises:
        InputError: there is none.
    """
    folder = judge_folder(base) if reference == AUTO else Path(reference).expanduser()
    if (folder / "judge.safetensors").is_file():
        return JudgeFeatures(Judge.load(folder))
    if reference == AUTO:
        raise InputError(f"features: there is no judge in {str(folder)!r}; {_instead(base)}.", param="features")
    return TransformerFeatures.open(reference)


def _instead(base: str) -> str:
    clip = clip_folder(base)
    if not (clip / "config.json").is_file():
        return "name a CLIP or DINO model with --features"
    return f"name another model with --features ({str(clip)!r} is the generator's own CLIP, which rewards colour)"


def gate_features(reference: str, base: BaseModel) -> Features:
    """What a candidate is judged by: features of that name; `auto` is the base's judge, else its CLIP, else its VAE.

    Raises:
        InputError: there are none of that name.
    """
    if reference != AUTO or (judge_folder(base.ref.id) / "judge.safetensors").is_file():
        return open_features(reference, base.ref.id)
    folder = clip_folder(base.ref.id)
    return TransformerFeatures.open(str(folder)) if (folder / "config.json").is_file() else LatentFeatures(base)


@dataclass(frozen=True, eq=False)
class LatentFeatures:
    """A base's VAE latents, brought to 8 x 8: layout and colour, for a base with nothing else beside it."""

    base: BaseModel

    @property
    def digest(self) -> str:
        """Of the base."""
        return self.base.ref.revision

    @torch.no_grad()
    def images(self, pictures_NHWC: Tensor) -> Tensor:
        """The features."""
        pixels = (_pixels(chunk, self.base.image_size) * 2 - 1 for chunk in pictures_NHWC.split(AT_ONCE))
        latents = torch.cat([self.base.encode_images(chunk.to(self.base.vae.dtype)).float() for chunk in pixels])
        return functional.normalize(functional.adaptive_avg_pool2d(latents, 8).flatten(1), dim=-1).cpu()


@dataclass(frozen=True, eq=False)
class JudgeFeatures:
    """The judge's, of pictures brought to the 64 pixels that it sees."""

    network: Judge

    @property
    def digest(self) -> str:
        """Of its weights."""
        return _digest(self.network)

    @torch.no_grad()
    def images(self, pictures_NHWC: Tensor) -> Tensor:
        """The features."""
        chunks = pictures_NHWC.split(_BATCH)
        return torch.cat([self.network.features(_pixels(chunk, 64) * 2 - 1) for chunk in chunks])


@dataclass(frozen=True, eq=False)
class TransformerFeatures:
    """Those of a CLIP (projected) or of another image transformer such as DINO (its first token)."""

    name: str
    model: Any
    size: int
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def digest(self) -> str:
        """Of its weights."""
        return _digest(self.model)

    @classmethod
    def open(cls, reference: str) -> "TransformerFeatures":
        """Load a model from a directory or the hub. Raises `InputError` if it cannot be had."""
        from transformers import AutoModel

        from cp_train.evaluation.tower import register

        register()
        try:
            loaded = AutoModel.from_pretrained(reference, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(
                f"features: {reference!r} is no judge, CLIP or DINO that can be loaded.", param="features"
            ) from error
        model = loaded.eval().requires_grad_(requires_grad=False)
        vision = getattr(model.config, "vision_config", model.config)
        return cls(reference, model, int(vision.image_size), *_normalisation(reference))

    @torch.no_grad()
    def images(self, pictures_NHWC: Tensor) -> Tensor:
        """The features."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        chunks = [(_pixels(chunk, self.size) - mean) / std for chunk in pictures_NHWC.split(_BATCH)]
        return functional.normalize(torch.cat([self._embed(chunk) for chunk in chunks]).float(), dim=-1)

    def _embed(self, x_BCHW: Tensor) -> Tensor:
        found: Tensor
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=x_BCHW).pooler_output
        else:
            found = self.model(pixel_values=x_BCHW).last_hidden_state[:, 0]
        return found


def _digest(network: nn.Module) -> str:
    return sha256(save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))


def _normalisation(reference: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the channels that a model wants; without a word of it, pixels in -1..1."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts, _ = ImageProcessingMixin.get_image_processor_dict(reference)
    except OSError:
        facts = {}
    return facts.get("image_mean", (0.5, 0.5, 0.5)), facts.get("image_std", (0.5, 0.5, 0.5))


@dataclass(frozen=True, eq=False)
class Agreement:
    """Cosine of a picture's and its prompt's CLIP embeddings: CLIP-T."""

    clip: TransformerFeatures
    tokenizer: Any

    def __call__(self, pictures_NHWC: Tensor, prompts: Sequence[str]) -> float:
        """Mean over pictures and their prompts, one prompt a picture."""
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            texts = self.clip.model.get_text_features(**tokens).pooler_output
        images = self.clip.images(pictures_NHWC)
        return (images * functional.normalize(texts.float(), dim=-1)).sum(-1).mean().item()


def open_agreement(features: Features, base: str, tokenizer: Any) -> Agreement | None:
    """The agreement by the features' own CLIP, else by the base's; None where there is neither.

    On the embedded base it is the generator's own CLIP, which rewards colour: a weak sign, kept for completeness.
    """
    folder = clip_folder(base)
    if isinstance(features, TransformerFeatures) and hasattr(features.model, "get_text_features"):
        ours = Path(features.name).resolve() == folder.resolve()
        return Agreement(features, tokenizer if ours else _tokenizer_of(features.name))
    return Agreement(TransformerFeatures.open(str(folder)), tokenizer) if (folder / "config.json").is_file() else None


def _tokenizer_of(reference: str) -> Any:
    """Of a CLIP. Raises `InputError` where it has none: transformers would make one up, without a vocabulary."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(reference)
    if len(found) <= len(set(found.all_special_tokens)):
        raise InputError(f"features: {reference!r} has no tokenizer beside it.", param="features")
    return found


def _pixels(pictures_NHWC: Tensor, size: int) -> Tensor:
    """Values in 0..1, [N, 3, size, size]."""
    x_NCHW = pictures_NHWC.permute(0, 3, 1, 2).contiguous().float() / 255
    if x_NCHW.shape[-2:] == (size, size):
        return x_NCHW
    return functional.interpolate(x_NCHW, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
