"""Render the bundled pictures again: `python infra/samples/make_samples.py DIR`.

DIR keeps the artwork packages (the `packages/` of a run of `python -m cp_train.pretrain` will do). Each concept is one
drawing in three views, as they are and placed anew: smaller, shifted, mirrored half of the time, on pale grounds.
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cp_train.benchmark.artwork import VIEWS
from cp_train.benchmark.subjects import placed
from cp_train.pretrain.artwork import Artwork
from cp_train.pretrain.render import on, picture

CONCEPTS = {"fox": "1f98a", "robot": "1f916"}
SIZE = 256


def main(packages: Path, output: Path) -> None:
    """Write every picture, named after its concept, its view and whether it was placed anew."""
    artwork = Artwork(packages)
    for name, code in CONCEPTS.items():
        chance = random.Random(name)  # noqa: S311
        for view in VIEWS:
            drawn = picture(artwork.drawings(view)[code], SIZE)
            plain = Image.fromarray(on(np.asarray(drawn)))
            for suffix, image in (("", plain), ("-placed", placed(drawn, chance))):
                image.save(output / name / f"{name}-{view}{suffix}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
