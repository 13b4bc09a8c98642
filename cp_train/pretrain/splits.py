"""What is learned, what is held out, and what is judged: committed lists, read from `concepts.txt`.

Two things are held out entirely. One hundred concepts are in no training picture of the base model in any style:
they are what gets personalized (the judge alone knows them). And two styles are in no training picture of any
model, the judge included: `emojione`, an ordinary coloured style, and `openmoji`, drawn in outlines (its licence is
share-alike, so it may only ever be measured against).
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

from cp_train.pretrain.artwork import STYLES
from cp_train.pretrain.pictograms import PICTOGRAMS

HELD_OUT_STYLES = ("emojione", "openmoji")
TRAIN_STYLES = tuple(package.style for package in STYLES if package.style not in HELD_OUT_STYLES)
PICTOGRAM_STYLES = tuple(package.style for package in PICTOGRAMS)
PARTS = ("train", "judged", "tuning", "reporting")


@dataclass(frozen=True)
class Concept:
    """One thing: its code points, the noun captions use, a category word, and its part in the split."""

    code: str
    noun: str
    category: str
    part: str

    @property
    def trained(self) -> bool:
        """Whether the base model sees it in training."""
        return self.part in ("train", "judged")


@cache
def concepts() -> tuple[Concept, ...]:
    """Every concept of the committed list, in its order."""
    text = resources.files(__package__).joinpath("concepts.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(Concept(*row) for row in rows)


def part(*names: str) -> tuple[Concept, ...]:
    """The concepts of the named parts (see PARTS)."""
    unknown = set(names) - set(PARTS)
    if unknown:
        raise ValueError(f"no part {sorted(unknown)}: there are {', '.join(PARTS)}")
    return tuple(concept for concept in concepts() if concept.part in names)


def trained() -> tuple[Concept, ...]:
    """The concepts the base model learns."""
    return part("train", "judged")


def held_out() -> tuple[Concept, ...]:
    """The concepts kept for personalization."""
    return part("tuning", "reporting")
