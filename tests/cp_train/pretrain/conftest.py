"""A world of six concepts drawn as plain shapes in every style, and the recipe at its smallest."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cp_train.pretrain.pictures import Library
from cp_train.pretrain.scenes import Painter
from cp_train.pretrain.splits import HELD_OUT_STYLES, PICTOGRAM_STYLES, TRAIN_STYLES, Concept, part
from cp_train.pretrain.stages import Recipe, Run

SIDE = 16


@contextmanager
def on_one_thread():
    """Small tensors are fastest so, and a resumed run is exact only on as many threads as the first part had."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="session")
def few() -> tuple[Concept, ...]:
    """Two trained, two judged and two held-out concepts of the real list."""
    return part("train")[:2] + part("judged")[:2] + part("tuning")[:1] + part("reporting")[:1]


@pytest.fixture(scope="session")
def pictures(few) -> Library:
    styles = TRAIN_STYLES + HELD_OUT_STYLES + PICTOGRAM_STYLES[:1]
    drawn = [
        (shape(number, shade), concept.code, style)
        for number, concept in enumerate(few)
        for shade, style in enumerate(styles)
    ]
    rgba, codes, names = zip(*drawn, strict=True)
    return Library(np.stack(rgba), np.array(codes), np.array(names))


def shape(number: int, shade: int):
    """A shape of its own for each concept, a shade of its own for each style [16, 16, 4]."""
    image = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    pen, colour = ImageDraw.Draw(image), (250 - 20 * shade, 40 * number, 60 + 15 * shade, 255)
    box = (1 + number, 1, SIDE - 2, SIDE - 2 - number)
    (pen.ellipse if number % 2 else pen.rectangle)(box, fill=colour)
    pen.line((0, 3 * number, SIDE, SIDE - 1), fill=(0, 0, 0, 255))
    return np.asarray(image)


@pytest.fixture
def painter(pictures, few) -> Painter:
    return Painter(pictures, tuple(c for c in few if c.trained), TRAIN_STYLES)


@pytest.fixture
def run(tmp_path: Path, pictures, few) -> Run:
    """A run whose pictures are there, nothing else."""
    return fresh(tmp_path / "run", pictures, few)


def fresh(folder: Path, pictures: Library, few: tuple[Concept, ...]) -> Run:
    folder.mkdir(parents=True)
    pictures.save(folder / "pictures.npz")
    pictures.select(few, [TRAIN_STYLES[0]]).save(folder / "redrawn.npz")
    (folder / "provenance.json").write_text(json.dumps([{"style": "shapes", "package": "none"}]), "utf-8")
    return Run(folder, Recipe.tiny(), few)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, pictures, few) -> Run:
    """A whole tiny run, made once."""
    from cp_train.pretrain.stages import STAGES, run_stage

    run = fresh(tmp_path_factory.mktemp("pretrain") / "run", pictures, few)
    with on_one_thread():  # session fixtures are made before the function's
        for stage in STAGES:
            run_stage(run, stage)
    return run
