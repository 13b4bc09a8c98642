"""Concept images -> latents, cached once per job: the VAE never runs inside the loop."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL import Image, ImageOps
from torch import Tensor

from services.base_model import BaseModel

MIN_CROP = 0.85
AT_ONCE = 8
"""Pictures that go through the VAE together."""


def to_bytes(images: Sequence[Image.Image], size: int) -> Tensor:
    """Centre-cropped squares as drawn pictures are, uint8 [N, size, size, 3]."""
    fitted = [ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS) for image in images]
    bytes_ = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in fitted]
    return torch.stack(bytes_).view(-1, size, size, 3)


def to_pixels(images: Sequence[Image.Image], size: int) -> Tensor:
    """Centre-cropped squares as float32 [N, 3, size, size] in [-1, 1]."""
    return to_bytes(images, size).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crop(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A square of 85 to 100% of the shorter side, anywhere in the image."""
    side = min(image.size)
    size = max(1, int(side * (MIN_CROP + (1 - MIN_CROP) * torch.rand((), generator=generator).item())))
    left = int(torch.randint(image.width - size + 1, (), generator=generator).item())
    top = int(torch.randint(image.height - size + 1, (), generator=generator).item())
    return image.crop((left, top, left + size, top + size))


def cached_latents(base: BaseModel, images: list[Image.Image], *, crops: int, seed: int) -> Tensor:
    """Latents of every image and then of `crops` random crops of each: [N * (1 + crops), C, H, W]."""
    pixels = _variants(images, base.image_size, crops, torch.Generator().manual_seed(seed))
    latents = []
    while chunk := list(islice(pixels, AT_ONCE)):
        latents.append(base.encode_images(torch.cat(chunk).to(base.vae.dtype)).float())
    return torch.cat(latents)


def _variants(images: list[Image.Image], size: int, crops: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One picture after the other: the crops of large photos together would not fit into memory."""
    yield from (to_pixels([image], size) for image in images)
    yield from (to_pixels([random_crop(image, generator)], size) for _ in range(crops) for image in images)
