"""Uncurated pictures: every concept of a run, what it was learned from, right after learning, and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cp_train.benchmark.results import Result

_REFERENCES = 3
_GAP, _HEAD, _SIDE, _LINE = 8, 22, 110, 15
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Block:
    """Some columns of pictures under one title; None where a concept has no such picture."""

    title: str
    rows: Sequence[Image.Image | None]
    width: int


def of_run(result: Result, path: Path) -> None:
    """One contender: a row for each concept, with its references, its first pictures and its last ones."""
    _write(
        [_references(result, _REFERENCES), _learned(result), _end(result, f"{result.cell.label}: at the end")],
        result,
        path,
    )


def side_by_side(results: Sequence[Result], path: Path, *, columns: int = 2) -> None:
    """Contenders of one order and seed: the references, then what each draws at the end."""
    ends = [_end(result, result.cell.label, columns) for result in results]
    first = max(results, key=lambda result: len(result.records))  # one that met every concept by itself
    _write([_references(first, columns), *ends], first, path)


def _references(result: Result, columns: int) -> Block:
    found = [_strip(result, number, "references", 0, columns) for number in range(1, result.count + 1)]
    return Block("learned from", found, _width(found))


def _learned(result: Result) -> Block:
    found = []
    for number in range(1, result.count + 1):
        record = result.records.get(number)
        row = record.figures["drawn"].index(number) if record else None
        found.append(None if row is None else _strip(result, number, "pictures", row))
    return Block("right after learning", found, _width(found))


def _end(result: Result, title: str, columns: int | None = None) -> Block:
    found = [_strip(result, result.count, "pictures", row, columns) for row in range(result.count)]
    return Block(title, found, _width(found))


def _strip(result: Result, task: int, name: str, row: int, columns: int | None = None) -> Image.Image | None:
    """A row of a kept sheet, all of it or its first pictures."""
    path = result.cell.task(task) / f"{name}.png"
    if not path.exists():
        return None
    with Image.open(path) as sheet:
        side = _side(sheet, result, task, name)
        width = sheet.width if columns is None else min(sheet.width, columns * side)
        return sheet.convert("RGB").crop((0, row * side, width, (row + 1) * side))


def _side(sheet: Image.Image, result: Result, task: int, name: str) -> int:
    """Side of one picture: references have one row; of the others there are as many as the record says, and pairs."""
    if name == "references":
        return sheet.height
    glimpses = len(result.records[task].features[f"glimpse/{result.records[task].figures['drawn'][0]}"])
    return sheet.width // glimpses


def _width(strips: Sequence[Image.Image | None]) -> int:
    return max((strip.width for strip in strips if strip), default=0)


def _write(blocks: Sequence[Block], result: Result, path: Path) -> None:
    shown = [block for block in blocks if block.width]
    side = next(strip.height for block in shown for strip in block.rows if strip)
    columns = [max(block.width, _text_width(block.title)) for block in shown]
    size = (_SIDE + sum(columns) + _GAP * len(shown), _HEAD + result.count * (side + 2))
    page = Image.new("RGB", size, _PAPER)
    ink = ImageDraw.Draw(page)
    for number, name in enumerate(result.concepts):
        ink.text((4, _HEAD + number * (side + 2) + side // 2 - _LINE // 2), name[:18], fill=_INK, font=_font())
    left = _SIDE
    for block, width in zip(shown, columns, strict=True):
        ink.text((left, 4), block.title, fill=_INK, font=_font())
        for number, strip in enumerate(block.rows):
            if strip:
                page.paste(strip, (left, _HEAD + number * (side + 2)))
        left += width + _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)


def _text_width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))
