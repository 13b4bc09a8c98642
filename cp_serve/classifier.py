"""Which of a version's concepts is in a picture? Diffusion-classifier scores of every concept and of none of them.

Each concept stands as "a photo of a <name>"; none of them as the same with each class noun, and with "object". A
picture of a mug that is not `<mug>` is closest to "a photo of a mug", so P(none) is the sum over those.
"""

import torch
from PIL import Image, ImageOps
from torch import Tensor

from cp_serve.bank import Slot
from cp_serve.line import Check
from cp_serve.prompts import Prompts
from cp_serve.requests import Picture
from services.base_model import BaseModel
from services.errors import InputError
from services.scores import classify

NONE = "none"
_TEMPLATE = "a photo of a {}"
_NO_NOUN = "object"
_TAU = 0.05
"""The scores' temperature (`services/scores.py`); ours."""
_SEED = 0
"""The same picture always gets the same answer."""


def classify_picture(
    base: BaseModel, prompts: Prompts, slot: Slot, picture: Picture, *, trials: int, check: Check = lambda: None
) -> dict[str, float]:
    """Probability of each concept of a version, in the order learned, and of none; `check` may end it early.

    Raises:
        InputError: the version has no concept.
    """
    concepts = slot.manifest.content.concepts
    if not concepts:
        raise InputError(f"model: {slot.model} has learned nothing yet.", param="model")
    names = [concept.name for concept in concepts]
    nouns = dict.fromkeys([*(concept.noun for concept in concepts if concept.noun), _NO_NOUN])
    words = [*(f"<{name}>" for name in names), *nouns]
    kv_PLK = torch.cat([prompts(_TEMPLATE.format(word), slot) for word in words])
    scores = classify(base, _latent(base, picture), kv_PLK, trials=trials, tau=_TAU, seed=_SEED, check=check)
    found = scores.tolist()
    return {**dict(zip(names, found, strict=False)), NONE: sum(found[len(names) :])}


def _latent(base: BaseModel, picture: Picture) -> Tensor:
    """The latent [C, H, W] of a picture's middle square at the base's size."""
    side = base.image_size
    square = ImageOps.fit(Image.fromarray(picture), (side, side), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(1, side, side, 3)
    images_BCHW = pixels.permute(0, 3, 1, 2).to(base.vae.dtype) / 127.5 - 1
    return base.encode_images(images_BCHW)[0]
