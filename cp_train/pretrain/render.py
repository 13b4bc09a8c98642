"""Drawings to pictures: one framing for every style.

A drawing is rasterised large, cropped to what is not transparent, padded to a square with the same small margin
and scaled down, so that a concept sits in its picture the same way whoever drew it. The alpha channel is kept:
`on` puts the subject on any background later.
"""

import importlib.util
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.errors import UnavailableError

SIZE = 64  #: pixels, of everything that is trained on
MARGIN = 0.06  #: of the side, left free around the subject
_RASTER = 256
_VISIBLE = 8  #: alpha

Pixels = npt.NDArray[np.uint8]
"""HWC, RGBA or RGB."""


def check_renderer() -> None:
    """Raise `UnavailableError` unless what rasterises SVG is installed."""
    if importlib.util.find_spec("resvg_py") is None:
        raise UnavailableError("Rendering drawings needs one more package: pip install 'palimpsest[pretrain]'.")


def picture(drawing: str | bytes, size: int = SIZE) -> Image.Image | None:
    """The drawing as a square RGBA picture, cropped, centred and padded; None if nothing of it is visible."""
    raw = _rasterise(drawing) if isinstance(drawing, str) else Image.open(io.BytesIO(drawing)).convert("RGBA")
    box = raw.getchannel("A").point(lambda a: 255 * (a > _VISIBLE)).getbbox()
    if box is None:
        return None
    subject = raw.crop(box)
    side = round(max(subject.size) / (1 - 2 * MARGIN))
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    canvas.paste(subject, ((side - subject.width) // 2, (side - subject.height) // 2))
    return _scale(canvas, size)


def _rasterise(svg: str) -> Image.Image:
    # Needed to make the pictures, not to use what was learned from them: an optional dependency.
    import resvg_py  # type: ignore[import-not-found, unused-ignore]

    png = resvg_py.svg_to_bytes(svg_string=svg, width=_RASTER, height=_RASTER)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _scale(image: Image.Image, size: int) -> Image.Image:
    """Down with premultiplied alpha, so that no dark fringe appears at the edges."""
    return image.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")


def on(subject_HW4: Pixels, colour: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """The subject on a plain background, [H, W, 3]."""
    alpha = subject_HW4[..., 3:].astype(np.float32) / 255
    mixed = subject_HW4[..., :3] * alpha + np.array(colour, np.float32) * (1 - alpha)
    return np.asarray(mixed.round().clip(0, 255), np.uint8)
