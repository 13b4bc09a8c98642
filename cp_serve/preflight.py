"""What can be said of a concept's images before they are learned from. Nothing here refuses anything.

- Near duplicates by their thumbnails: 16x16 in colour, less than 8 of 255 apart (root mean square). The bundled
  samples' closest two are 20 apart; the same picture, scaled or saved anew, is less than 2 apart.
- Sharpness by the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) of the grey picture at the base's size,
  divided by the picture's own variance, so that pale pictures are not called blurred.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cp_serve.schemas_learning import Finding
from services.images import CheckedImage, reopen

_FEW, _MANY = 3, 30
_THUMBNAIL, _SAME = 16, 8.0
_BLURRED = 0.01
"""The bundled samples have 0.47 to 1.38; blurred by a Gaussian of a 24th of their width, 0.003 to 0.008."""


def preflight(images: Sequence[CheckedImage], side: int) -> list[Finding]:
    """What the user should know of pictures for a base that draws `side` x `side`."""
    pictures = [reopen(image.png) for image in images]
    return [*_count(images), *_duplicates(images), *_alike(images, pictures), *_poor(images, pictures, side)]


def _count(images: Sequence[CheckedImage]) -> Iterator[Finding]:
    if len(images) < _FEW:
        yield Finding(kind="too_few", images=[], message=f"{len(images)} pictures; {_FEW} to {_MANY} are advised.")
    if len(images) > _MANY:
        yield Finding(kind="too_many", images=[], message=f"{len(images)} pictures; {_FEW} to {_MANY} are advised.")


def _duplicates(images: Sequence[CheckedImage]) -> Iterator[Finding]:
    for image in images:
        yield from (Finding(kind="duplicate", images=[image.name], message=note) for note in image.notes)


def _alike(images: Sequence[CheckedImage], pictures: Sequence[Image.Image]) -> Iterator[Finding]:
    thumbnails = [_thumbnail(picture) for picture in pictures]
    for (one, a_HWC), (other, b_HWC) in combinations(zip(images, thumbnails, strict=True), 2):
        if np.square(a_HWC - b_HWC).mean() < _SAME**2:
            message = f"{one.name!r} and {other.name!r} show nearly the same; other views teach more."
            yield Finding(kind="near_duplicate", images=[one.name, other.name], message=message)


def _poor(images: Sequence[CheckedImage], pictures: Sequence[Image.Image], side: int) -> Iterator[Finding]:
    for image, picture in zip(images, pictures, strict=True):
        if min(image.width, image.height) < side:
            message = f"{image.name!r} is {image.width}x{image.height}; this base draws {side}x{side}."
            yield Finding(kind="too_small", images=[image.name], message=message)
        if sharpness(picture, side) < _BLURRED:
            message = f"{image.name!r} looks blurred; a sharp picture teaches more."
            yield Finding(kind="blurred", images=[image.name], message=message)


def sharpness(picture: Image.Image, side: int) -> float:
    """Variance of the Laplacian over the picture's own variance, at the base's size; of one flat colour infinite."""
    grey_HW = np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX), np.float64)
    inner_HW = grey_HW[1:-1, 1:-1]
    laplacian_HW = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:] - 4 * inner_HW
    spread = float(inner_HW.var())
    return float(laplacian_HW.var()) / spread if spread else float("inf")


def _thumbnail(picture: Image.Image) -> NDArray[np.float32]:
    """16x16x3."""
    return np.asarray(picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.float32)
