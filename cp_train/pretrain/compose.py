"""Scenes: a subject as drawn, recoloured, on a coloured ground, or beside another subject.

They give colour words and "and" a meaning, so that prompts compose. Recolouring keeps the drawing's light and dark:
with L the luminance of a pixel, m its mean over the subject and p that of the colour c,

    l = p + 0.8 (L - m),     pixel = c l / p  for l <= p,     c + (1 - c)(l - p)/(1 - p)  above

so the colour sits where the subject's own mean was, shadows go to black and lights to white.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cp_train.pretrain.render import Pixels, on
from cp_train.pretrain.splits import Concept

TINTS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 40),
    "orange": (245, 130, 32),
    "yellow": (245, 208, 40),
    "green": (52, 160, 62),
    "blue": (44, 104, 214),
    "purple": (138, 62, 182),
    "pink": (240, 120, 172),
    "brown": (126, 78, 44),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (232, 92, 88),
    "orange": (250, 176, 106),
    "yellow": (252, 230, 126),
    "green": (138, 206, 142),
    "blue": (126, 180, 240),
    "purple": (184, 144, 222),
    "pink": (250, 188, 214),
    "brown": (176, 138, 108),
    "grey": (168, 168, 172),
    "black": (24, 24, 28),
}
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_HUE_ENDS = {16: "red", 42: "orange", 70: "yellow", 165: "green", 250: "blue", 295: "purple", 345: "pink"}  #: degrees
_BROWN_BELOW, _WHITE_ABOVE, _DARK_GREY, _BLACK_BELOW = 0.62, 0.85, 0.3, 0.2  #: values
_COLOURED_FROM = 0.2  #: saturation
_OPAQUE = 128  #: alpha
_SMALL = 37  #: pixels of each subject of a pair, of 64


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one training picture shows; `second` stands at the lower right of the first."""

    subject: Concept
    style: str
    second: Concept | None = None
    tint: str | None = None
    ground: str | None = None


def tinted(subject_HW4: Pixels, colour: tuple[int, int, int]) -> Pixels:
    """The subject in one colour, its light and dark kept; same alpha."""
    c = np.array(colour, np.float32) / 255
    light_HW = subject_HW4[..., :3].astype(np.float32) @ _LUMINANCE / 255
    alpha_HW = subject_HW4[..., 3].astype(np.float32)
    p = float(c @ _LUMINANCE)
    mean = float((light_HW * alpha_HW).sum() / max(1.0, alpha_HW.sum()))
    l_HW1 = (p + 0.8 * (light_HW - mean)).clip(0, 1)[..., None]
    below, above = c * l_HW1 / p, c + (1 - c) * (l_HW1 - p) / (1 - p)
    rgb = np.where(l_HW1 <= p, below, above) * 255
    return np.concatenate([rgb.round().astype(np.uint8), subject_HW4[..., 3:]], axis=-1)


def paired(first_HW4: Pixels, second_HW4: Pixels) -> Pixels:
    """Both, smaller: the first at the upper left, the second at the lower right, in front."""
    size = first_HW4.shape[0]
    small = round(size * _SMALL / 64)
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    for subject, at in ((first_HW4, 0), (second_HW4, size - small)):
        shrunk = Image.fromarray(subject).resize((small, small), Image.Resampling.LANCZOS)
        canvas.alpha_composite(shrunk, (at, at))
    return np.asarray(canvas)


def painted(scene: Scene, subject_HW4: Pixels, second_HW4: Pixels | None = None) -> Pixels:
    """The scene as a picture [H, W, 3]."""
    drawn = tinted(subject_HW4, TINTS[scene.tint]) if scene.tint else subject_HW4
    if second_HW4 is not None:
        drawn = paired(drawn, second_HW4)
    return on(drawn, GROUNDS[scene.ground] if scene.ground else (255, 255, 255))


def main_colour(subject_HW4: Pixels, share: float = 0.6) -> str | None:
    """The colour word that fits at least `share` of the subject, if one does."""
    seen = subject_HW4[..., 3] > _OPAQUE
    rgb = np.asarray(subject_HW4[seen][:, :3] / 255, np.float32)
    if not len(rgb):
        return None
    word, count = Counter(_words(rgb).tolist()).most_common(1)[0]
    return str(word) if count >= share * len(rgb) else None


def _words(rgb_N3: npt.NDArray[np.float32]) -> npt.NDArray[np.str_]:
    """A colour word for each pixel, by hue, saturation and value."""
    top, low = rgb_N3.max(1), rgb_N3.min(1)
    spread = np.maximum(top - low, 1e-6)
    red, green, blue = rgb_N3.T
    greenish = np.where(top == green, 2 + (blue - red) / spread, 4 + (red - green) / spread)
    hue = 60 * np.where(top == red, (green - blue) / spread % 6, greenish)
    by_hue = np.select([hue < end for end in _HUE_ENDS], list(_HUE_ENDS.values()), "red")
    brown = np.isin(by_hue, ["orange", "red"]) & (top < _BROWN_BELOW)
    words = np.where(brown, "brown", by_hue)
    grey = np.where(top > _WHITE_ABOVE, "white", np.where(top < _DARK_GREY, "black", "grey"))
    words = np.where(spread / np.maximum(top, 1e-6) < _COLOURED_FROM, grey, words)
    return np.asarray(np.where(top < _BLACK_BELOW, "black", words))
