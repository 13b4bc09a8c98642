"""The held-out artwork that ships with the benchmark: 100 concepts in three views of one drawing, on one sheet.

`held_out/sheet.png` is an RGBA sheet of 64x64 pictures, a concept's views side by side; `sheet.json` names the concepts
and the views in that order, and the packages they come from. Made again by

    python -m cp_train.benchmark.artwork DIR        DIR: the `--out` of `python -m cp_train.pretrain --stage pictures`
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cp_train.pretrain.pictures import Library, provenance
from cp_train.pretrain.render import SIZE, Pixels
from cp_train.pretrain.splits import Concept, held_out

FOLDER = Path(__file__).parent / "held_out"
VIEWS = ("3d", "fluent", "flat")
"""Styles that show the same drawing; all of one author and under one permissive licence."""
_ACROSS = 15
"""Pictures in one row of the sheet."""


@cache
def load(folder: Path = FOLDER) -> dict[str, Pixels]:
    """Code points of each concept on the sheet -> its views [3, 64, 64, 4]."""
    codes = json.loads((folder / "sheet.json").read_text("utf-8"))["codes"]
    with Image.open(folder / "sheet.png") as sheet:
        pictures_N = _cut(np.asarray(sheet.convert("RGBA")))
    return {code: pictures_N[i * len(VIEWS) : (i + 1) * len(VIEWS)] for i, code in enumerate(codes)}


def write(pictures: Library, wanted: tuple[Concept, ...], folder: Path) -> None:
    """Put the views of the concepts on one sheet, and say beside it what it shows and whose it is."""
    rgba_NHW4 = np.stack([pictures.rgba_NHW4[pictures.index[c.code, view]] for c in wanted for view in VIEWS])
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_sheet(rgba_NHW4)).save(folder / "sheet.png", optimize=True)
    facts = {"views": VIEWS, "packages": _packages(pictures), "codes": [concept.code for concept in wanted]}
    (folder / "sheet.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _packages(pictures: Library) -> list[dict[str, Any]]:
    wanted = ("style", "package", "version", "licence", "author")
    return [{key: row[key] for key in wanted} for row in provenance(pictures) if row["style"] in VIEWS]


def _sheet(rgba_NHW4: Pixels) -> Pixels:
    empty = np.zeros((-len(rgba_NHW4) % _ACROSS, *rgba_NHW4.shape[1:]), np.uint8)
    rows = np.concatenate([rgba_NHW4, empty]).reshape(-1, _ACROSS, SIZE, SIZE, 4)
    return np.asarray(rows.transpose(0, 2, 1, 3, 4).reshape(-1, _ACROSS * SIZE, 4))


def _cut(sheet_HW4: Pixels) -> Pixels:
    rows = sheet_HW4.reshape(-1, SIZE, sheet_HW4.shape[1] // SIZE, SIZE, 4)
    return np.asarray(rows.transpose(0, 2, 1, 3, 4).reshape(-1, SIZE, SIZE, 4))


def main(arguments: list[str] | None = None) -> None:
    """Make the sheet from a run of the pretraining recipe."""
    line = argparse.ArgumentParser(prog="python -m cp_train.benchmark.artwork", description=__doc__)
    line.add_argument("run", type=Path, help="folder of the recipe's run, with pictures.npz")
    line.add_argument("-o", "--output", type=Path, default=FOLDER, help="default: where it ships")
    given = line.parse_args(arguments)
    write(Library.load(given.run / "pictures.npz"), held_out(), given.output)


if __name__ == "__main__":
    main()
