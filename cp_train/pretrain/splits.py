"""What is learned, what is held out, and what is judged: committed lists, read from `concepts.txt`.

Two things are held out entirely. One hundred concepts are in no training picture of the base model in any style:
they are what gets personalized (the judge alone knows them). And two styles are in no training picture of the base
model: `emojione`, an ordinary coloured style, and `openmoji`, drawn in outlines (its licence is share-alike, so it may
only ever be measured against). The judge has held-out styles of its own, by which it is measured: `openmoji`, and
`twemoji`, a coloured style; `emojione` it may see, for the more hands it has seen, the better it tells things apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cp_train.pretrain.artwork import STYLES
from cp_train.pretrain.pictograms import PICTOGRAMS

HELD_OUT_STYLES = ("emojione", "openmoji")
TRAIN_STYLES = tuple(package.style for package in STYLES if package.style not in HELD_OUT_STYLES)
JUDGE_HELD_OUT_STYLES = ("twemoji", "openmoji")
JUDGE_STYLES = tuple(package.style for package in STYLES if package.style not in JUDGE_HELD_OUT_STYLES)
PICTOGRAM_STYLES = tuple(package.style for package in PICTOGRAMS)
PARTS = ("train", "judged", "tuning", "reporting")
_TWIN = "twin"


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
    return tuple(Concept(*row) for row in _rows() if row[-1] in PARTS)


@cache
def twins() -> frozenset[str]:
    """Codes beside the concepts' that show one of them once more (a dragon's face, an umbrella in the rain).

    Nothing is trained on them, for that would be training on a held-out concept, or telling a thing from itself.
    """
    return frozenset(row[0] for row in _rows() if row[-1] == _TWIN)


def _rows() -> Iterator[list[str]]:
    text = resources.files(__package__).joinpath("concepts.txt").read_text("utf-8")
    return (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))


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
