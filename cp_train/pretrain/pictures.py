"""The picture library: every drawing that is used, rendered once, with where it came from.

`pictures.npz` holds RGBA pictures [N, 64, 64, 4] with their code points and style. Besides the listed concepts it
holds the rest of the artwork in the training styles ("scenery"), from which only the VAE and the judge learn, and the
concepts' pictograms. `redrawn.npz` holds drawings as other hands might have made them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cp_train.files import write_whole
from cp_train.pretrain.artwork import LABELS, STYLES, Artwork, Package, package_of
from cp_train.pretrain.loop import dice
from cp_train.pretrain.pictograms import PICTOGRAMS
from cp_train.pretrain.progress import Progress
from cp_train.pretrain.redraw import redrawn
from cp_train.pretrain.render import Pixels, check_renderer, picture
from cp_train.pretrain.splits import (
    HELD_OUT_STYLES,
    JUDGE_STYLES,
    TRAIN_STYLES,
    Concept,
    concepts,
    twins,
)

_REDRAWN, _REDRAWN_SCENERY = 8, 3  # hands in which each drawing is made once more
_LEFT_OUT_GROUPS = {1, 8, 9}  # people (hundreds of variations), symbols, flags


@dataclass(frozen=True)
class Library:
    """Pictures with their labels; selections of it share its memory only where numpy does."""

    rgba_NHW4: Pixels
    codes: npt.NDArray[np.str_]
    styles: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.codes)

    def select(self, wanted: Iterable[Concept], styles: Iterable[str]) -> "Library":
        """The pictures of these concepts in these styles."""
        codes = [concept.code for concept in wanted]
        return self._where(np.isin(self.codes, codes) & np.isin(self.styles, list(styles)))

    def for_the_vae(self) -> "Library":
        """Everything in the training styles but the held-out concepts."""
        secret = [concept.code for concept in concepts() if not concept.trained]
        return self._where(~np.isin(self.codes, secret) & np.isin(self.styles, TRAIN_STYLES))

    def others(self, listed: Iterable[Concept], styles: Iterable[str]) -> tuple[Concept, ...]:
        """Things that have a picture in these styles beside the listed ones; nameless."""
        known = {concept.code for concept in listed}
        found = set(map(str, self.codes[np.isin(self.styles, list(styles))]))
        return tuple(Concept(code, noun="", category="", part="other") for code in sorted(found - known))

    @cached_property
    def index(self) -> dict[tuple[str, str], int]:
        """(code, style) -> row; of several the last."""
        return {key: rows[-1] for key, rows in self.rows.items()}

    @cached_property
    def rows(self) -> dict[tuple[str, str], list[int]]:
        """(code, style) -> rows."""
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row, (code, style) in enumerate(zip(self.codes, self.styles, strict=True)):
            found[str(code), str(style)].append(row)
        return dict(found)

    def _where(self, mask: npt.NDArray[np.bool_]) -> "Library":
        return Library(self.rgba_NHW4[mask], self.codes[mask], self.styles[mask])

    def save(self, path: Path) -> None:
        """Write as one npz file, whole or not at all."""
        partial = path.with_name(path.stem + ".partial.npz")
        np.savez_compressed(partial, rgba=self.rgba_NHW4, codes=self.codes, styles=self.styles)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Library":
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(stored["rgba"], stored["codes"], stored["styles"])


def redrawings(out: Path) -> Library:
    """The drawings once more in other hands (`redraw.py`), kept in `out`: several a thing and style.

    Not of `openmoji`, on which nothing may be trained, nor where a style's drawings are no vector graphics.

    Raises:
        ArtworkError: a package cannot be had.
        UnavailableError: what renders them is not installed.
    """
    path = out / "redrawn.npz"
    if not path.exists():
        check_renderer()
        artwork = Artwork(out / "packages")
        listed = {concept.code for concept in concepts()}
        styles = [style for style in sorted({*TRAIN_STYLES, *JUDGE_STYLES}) if not package_of(style).bitmaps]
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            rows = [row for style in styles for row in _redrawn(artwork, style, listed, pool)]
        rgba, subjects, names = zip(*rows, strict=True)
        Library(np.stack(rgba), np.array(subjects), np.array(names)).save(path)
    return Library.load(path)


def _redrawn(
    artwork: Artwork, style: str, listed: set[str], pool: ProcessPoolExecutor
) -> Iterator[tuple[Pixels, str, str]]:
    found = artwork.drawings(style)
    wanted = [code for code in found if code in listed or (_is_scenery(artwork, code) and code not in twins())]
    progress = Progress(f"redraw {style}", len(wanted))
    counts = [_REDRAWN if code in listed else _REDRAWN_SCENERY for code in wanted]
    drawn = pool.map(_hands, (found[code] for code in wanted), (f"{style} {code}" for code in wanted), counts)
    for step, (code, images) in enumerate(zip(wanted, drawn, strict=True), 1):
        yield from ((image, code, style) for image in images)
        progress.update(step)


def _hands(drawing: str | bytes, name: str, count: int) -> list[Pixels]:
    """A vector drawing by `count` hands, which its name decides, but those that left nothing to see."""
    assert isinstance(drawing, str)
    chance = dice(15, name)
    images = [picture(redrawn(drawing, chance)) for _ in range(count)]
    return [np.asarray(image) for image in images if image is not None]


def library(out: Path) -> Library:
    """The library in `out`, built from the packages the first time; writes `provenance.json` beside it.

    Raises:
        ArtworkError: a package cannot be had.
        UnavailableError: what renders drawings is not installed.
    """
    path = out / "pictures.npz"
    if not path.exists():
        check_renderer()
        out.mkdir(parents=True, exist_ok=True)
        built = _build(Artwork(out / "packages"))
        write_whole(out / "provenance.json", json.dumps(provenance(built), indent=1) + "\n")
        built.save(path)
    return Library.load(path)


def provenance(pictures: Library) -> list[dict[str, str | int]]:
    """One row a package: name, version, licence, author, how many pictures of each kind, and what learned from them."""
    known = [concept.code for concept in concepts() if concept.trained]
    secret = [concept.code for concept in concepts() if not concept.trained]
    rows = [_origin(LABELS) | {"used": "nouns and groups"}]
    for package in (*STYLES, *PICTOGRAMS):
        mine = pictures.codes[pictures.styles == package.style]
        trained, held_out = int(np.isin(mine, known).sum()), int(np.isin(mine, secret).sum())
        counts = {"trained": trained, "held_out": held_out, "scenery": len(mine) - trained - held_out}
        rows.append({**_origin(package), **counts, "used": _used(package, counts)})
    return rows


def _used(package: Package, counts: Mapping[str, int]) -> str:
    """What learned from a package's drawings of each kind; `counts` says how many of each it has."""
    pictogram, base = package in PICTOGRAMS, package.style in TRAIN_STYLES
    judge = ["judge"] * (pictogram or package.style in JUDGE_STYLES)
    learned = (
        ("trained", counts["trained"], ["base model"] * base + ["image tower"] * pictogram + judge),
        ("held out", counts["held_out"], judge),
        ("others", counts["scenery"], ["VAE"] * base + judge),
    )
    return "; ".join(f"{kind}: {' and '.join(who) or 'measured against'}" for kind, count, who in learned if count)


def _origin(package: Package) -> dict[str, str | int]:
    return {
        "style": package.style,
        "package": package.name,
        "version": package.version,
        "licence": package.licence,
        "author": package.author,
    }


def _build(artwork: Artwork) -> Library:
    codes = {concept.noun: concept.code for concept in concepts()}
    rows = [row for package in STYLES for row in _rendered(package.style, _wanted(artwork, package.style, codes))]
    for pictogram in PICTOGRAMS:
        rows += _rendered(pictogram.style, dict(pictogram.drawings(artwork.cache, codes)))
    rgba, subjects, styles = zip(*rows, strict=True)
    return Library(np.stack(rgba), np.array(subjects), np.array(styles))


def _wanted(artwork: Artwork, style: str, codes: Mapping[str, str]) -> dict[str, str | bytes]:
    """Code -> drawing, of the listed concepts, and of the scenery too where the style is trained on."""
    listed, scenery = set(codes.values()), style not in HELD_OUT_STYLES
    found = artwork.drawings(style)
    kept = {code for code in found if code in listed or (scenery and _is_scenery(artwork, code))}
    return {code: found[code] for code in found if code in kept - twins()}


def _rendered(style: str, drawings: Mapping[str, str | bytes]) -> Iterator[tuple[Pixels, str, str]]:
    progress = Progress(f"render {style}", len(drawings))
    for step, (code, drawing) in enumerate(drawings.items(), 1):
        image = picture(drawing)
        if image is not None:
            yield np.asarray(image), code, style
        progress.update(step)


def _is_scenery(artwork: Artwork, key: str) -> bool:
    return artwork.labels[key].group not in _LEFT_OUT_GROUPS
