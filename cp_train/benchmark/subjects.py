"""What is personalized: held-out artwork, or anybody's own folders of pictures.

A subject of the artwork has six pictures: its drawing in three views as they are, and the same three placed anew
(smaller, shifted, mirrored half of the time) on pale grounds.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cp_train.benchmark import artwork
from cp_train.pretrain.render import on
from cp_train.pretrain.splits import part
from services.errors import InputError
from services.images import check_images, reopen
from services.intake import collect
from services.manifest import Concept, check_name, check_noun
from services.settings import Settings

GROUNDS = (
    (255, 240, 222),
    (224, 238, 252),
    (228, 246, 228),
    (250, 230, 242),
    (236, 236, 238),
    (255, 248, 212),
)
"""Pale colours behind the pictures that are placed anew."""
NOUNS = "nouns.txt"
_SMALL = 37 / 64
"""Share of the side that each of two subjects takes in a picture of both, as in `cp_train/pretrain/compose.py`."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One concept to be learned, and its pictures.

    Attributes:
        images: what is learned from, and the reference of every metric.
        cutouts: the same subject, RGBA, to compose pictures of two; opaque where nobody cut it out.
    """

    concept: Concept
    images: tuple[Image.Image, ...]
    cutouts: tuple[Image.Image, ...]

    @property
    def digest(self) -> str:
        """Of the pixels that are learned from."""
        found = hashlib.sha256()
        for image in self.images:
            found.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return found.hexdigest()[:16]


def shipped(name: str) -> list[Subject]:
    """The artwork of one part of the split, `reporting` or `tuning`, in the committed order."""
    views = artwork.load()
    return [_drawn(concept.noun, [Image.fromarray(v) for v in views[concept.code]]) for concept in part(name)]


def _drawn(noun: str, views: list[Image.Image]) -> Subject:
    chance = random.Random(noun)  # noqa: S311
    plain = [Image.fromarray(on(np.asarray(view))) for view in views]
    moved = [placed(view, chance) for view in views]
    name = re.sub(r"[^a-z0-9]+", "-", noun.lower())
    return Subject(Concept(name=check_name(name, "concept"), noun=noun), (*plain, *moved), tuple(views))


def placed(view: Image.Image, chance: random.Random) -> Image.Image:
    """The subject at 75 to 95% of its size, somewhere on a pale ground, mirrored half of the time."""
    side = round(view.width * chance.uniform(0.75, 0.95))
    small = view.resize((side, side), Image.Resampling.LANCZOS)
    small = ImageOps.mirror(small) if chance.random() < 0.5 else small  # noqa: PLR2004
    canvas = Image.new("RGBA", view.size, (255, 255, 255, 0))
    canvas.alpha_composite(small, (chance.randint(0, view.width - side), chance.randint(0, view.height - side)))
    return Image.fromarray(on(np.asarray(canvas), chance.choice(GROUNDS)))


def from_folders(root: Path, settings: Settings) -> list[Subject]:
    """One subject for every subfolder, checked as every concept image is.

    The folder's name becomes the concept's (`Cat Statue2` is `<cat-statue2>`). Its class noun is what `nouns.txt` in
    `root` says (lines `folder: noun`), else the name's words without trailing digits.

    Raises:
        InputError: there is no such folder, no subfolder in it, or a name, noun or picture that cannot be accepted.
    """
    if not root.is_dir():
        raise InputError(f"images: {str(root)!r} is not a folder; give one with a subfolder for each concept.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"images: there are no subfolders in {str(root)!r}; every concept needs its own.")
    nouns = _nouns(root / NOUNS, {folder.name for folder in folders})
    subjects = [_photographed(folder, nouns.get(folder.name), settings) for folder in folders]
    names = [subject.concept.name for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"images: several folders would be called <{twice[0]}>; rename one.", param="images")
    return subjects


def _nouns(path: Path, folders: set[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = [line.partition(":") for line in path.read_text("utf-8").splitlines() if line.strip()]
    for folder, colon, _ in lines:
        if not colon or folder.strip() not in folders:
            raise InputError(f"images: {NOUNS} has a line {folder.strip()!r} that is not `folder: noun`.")
    return {folder.strip(): noun.strip() for folder, _, noun in lines}


def _photographed(folder: Path, noun: str | None, settings: Settings) -> Subject:
    words = re.sub(r"[\s_-]+", " ", folder.name.lower()).strip()
    try:
        name = check_name(words.replace(" ", "-"), "concept")
        said = check_noun(words.rstrip("0123456789 ") if noun is None else noun)
        checked = check_images(collect(str(folder), settings), settings)
    except InputError as error:
        raise type(error)(f"{folder.name}: {error.message}", param="images") from error
    images = tuple(reopen(image.png) for image in checked)
    return Subject(Concept(name=name, noun=said), images, tuple(image.convert("RGBA") for image in images))


def together(first: Subject, second: Subject, size: int) -> list[Image.Image]:
    """Pictures of both on white: the first at the upper left, the second at the lower right, in front."""
    small = round(size * _SMALL)
    pictures = []
    for one, two in zip(first.cutouts, second.cutouts, strict=False):
        canvas = Image.new("RGBA", (size, size), "white")
        for cutout, at in ((one, 0), (two, size - small)):
            canvas.alpha_composite(ImageOps.fit(cutout, (small, small), Image.Resampling.LANCZOS), (at, at))
        pictures.append(canvas.convert("RGB"))
    return pictures
