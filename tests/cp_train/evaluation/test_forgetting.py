"""The forgetting matrix from the figures that manifests hold, and a concept's pictures over the versions."""

import csv
import io

import numpy as np
from PIL import Image

from cp_train.evaluation.forgetting import NEWEST, Matrix, Row
from cp_train.evaluation.timeline import Sheet, over_versions

ROWS = [
    Row("1", "fox", {"dc_accuracy": 1.0}),
    Row(
        "2",
        "mug",
        {"dc_accuracy": 0.75, "drift.fox.dc_accuracy": 0.5, "drift.fox.similarity": 0.9, "drift.fox.kv": 0.1},
    ),
    Row("this", "cup", {"dc_accuracy": 0.25, "drift.mug.dc_accuracy": 1.0, "drift.fox.kv": 0.01}),
]
LEARNED = ["fox", "mug", "cup"]


def test_a_figure_is_where_it_was_measured_and_nowhere_else() -> None:
    matrix = Matrix.of(ROWS, LEARNED)
    assert matrix.cells() == [[1.0, None, None], [0.5, 0.75, None], [None, 1.0, 0.25]]
    assert matrix.to_markdown().splitlines() == [
        "| version | `<fox>` | `<mug>` | `<cup>` |",
        "| --- | --- | --- | --- |",
        "| 1 | 1.00 |  |  |",
        "| 2 | 0.50 | 0.75 |  |",
        "| this |  | 1.00 | 0.25 |",
    ]


def test_the_table_has_every_figure() -> None:
    lines = list(csv.DictReader(io.StringIO(Matrix.of(ROWS, LEARNED).to_csv())))
    assert [(line["version"], line["concept"], line["dc_accuracy"], line["kv"]) for line in lines] == [
        ("1", "fox", "1", ""),
        ("2", "fox", "0.5", "0.1"),
        ("2", "mug", "0.75", ""),
        ("this", "fox", "", "0.01"),
        ("this", "mug", "1", ""),
        ("this", "cup", "0.25", ""),
    ]


def test_a_long_branch_shows_its_newest_versions_and_concepts() -> None:
    names = [f"c{number}" for number in range(40)]
    rows = [Row(str(n), name, {"dc_accuracy": 1.0}) for n, name in enumerate(names, 1)]
    matrix = Matrix.of(rows, names)
    assert [row.version for row in matrix.rows] == [str(n) for n in range(41 - NEWEST, 41)]
    assert matrix.concepts == names[-NEWEST:]
    assert Image.open(io.BytesIO(matrix.to_png())).format == "PNG"


def test_the_heat_map_shows_what_was_forgotten_in_another_colour() -> None:
    good, bad = (Matrix.of([Row("1", "fox", {"dc_accuracy": value})], ["fox"]).to_png() for value in (1.0, 0.0))
    red, green = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)[..., :2].mean((0, 1)) for png in (bad, good)
    )
    assert red[0] > red[1]
    assert green[1] > green[0]
    assert good == Matrix.of([Row("1", "fox", {"dc_accuracy": 1.0})], ["fox"]).to_png(), "the same gives the same bytes"


def test_a_version_that_was_not_judged_has_no_figures() -> None:
    matrix = Matrix.of([Row("this", "fox", {})], ["fox"])
    assert matrix.cells() == [[]]
    assert matrix.to_markdown() == "| version |\n| --- |\n| this |"


def sheet(version: str, concepts: list[str], shades: list[int], side: int = 16) -> Sheet:
    """A grid of two seeds whose rows have one shade each."""
    rows = np.concatenate([np.full((side, 2 * side, 3), shade, np.uint8) for shade in shades])
    out = io.BytesIO()
    Image.fromarray(rows).save(out, "PNG")
    return Sheet(version, concepts, out.getvalue())


def test_a_concepts_rows_are_cut_from_every_versions_grid() -> None:
    sheets = [
        sheet("1", ["fox"], [50]),
        sheet("2", ["fox", "mug"], [90, 200]),
        sheet("this", ["fox", "mug"], [130, 250]),
    ]
    page = over_versions(sheets, "fox")
    assert page is not None
    pixels = np.asarray(Image.open(io.BytesIO(page)).convert("L"), int)
    assert pixels.shape == (3 * 18, 44 + 32)
    shades = [int(pixels[18 * row + 8, 60]) for row in range(3)]
    assert all(abs(shade - wanted) <= 2 for shade, wanted in zip(shades, (50, 90, 130), strict=True))
    mug = over_versions(sheets, "mug")
    assert mug is not None
    assert Image.open(io.BytesIO(mug)).height == 2 * 18
    assert over_versions(sheets, "cup") is None


def test_large_pictures_become_small_ones() -> None:
    page = over_versions([sheet("1", ["fox"], [50], side=512)], "fox")
    assert page is not None
    assert Image.open(io.BytesIO(page)).size == (44 + 2 * 96, 96 + 2)


def test_what_is_no_grid_is_left_out() -> None:
    wrong = [Sheet("1", ["fox"], b"not a picture"), Sheet("2", ["fox", "mug", "cup"], sheet("2", ["a"], [1]).png)]
    assert over_versions(wrong, "fox") is None
    assert over_versions([*wrong, sheet("3", ["fox"], [9])], "fox") is not None
