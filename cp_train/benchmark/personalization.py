"""How well a base takes to a concept: held-out subjects, five pictures each, the job's own default settings.

    likeness = s(drawn, references) / s(references)

with s(X, Y) the mean cosine of the judge's features over all pairs and s(X) over pairs of different pictures: 1 where
what is drawn is as like the references as they are like each other. Beside it prompts that nobody trained on, and how
much of the first concept plain fine-tuning on five in a row leaves.

    python -m cp_train.benchmark.personalization -o DIR     writes personalization.json and personalized.png
"""

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cp_train.benchmark.learner import Cost, History, learn
from cp_train.benchmark.subjects import Subject, shipped
from cp_train.data import to_bytes
from cp_train.evaluation.distances import similarity
from cp_train.evaluation.draw import draw, grid
from cp_train.evaluation.features import AUTO, Features, open_features
from cp_train.methods import DEFAULT
from cp_train.plan import LearningConfig
from cp_train.pretrain.compose import main_colour
from cp_train.pretrain.render import Pixels
from services.adapter import Adapter
from services.arguments import Parser
from services.base_model import BaseModel, load_base
from services.errors import PalimpsestError
from services.telemetry import configure_logging

log = logging.getLogger("palimpsest.personalization")

REFERENCES = 5
SEEDS = tuple(range(8))
PROMPTS = (
    "a photo of a <{}>",
    "a <{}> in blue",
    "a photo of a <{}> on a red background",
    "a <{}> and a red apple",
    "a cartoon of a <{}>",
)
"""The first is trained on, the others are not."""
IN_BLUE = 1
_SHOWN = 4
_PAPER = 230  #: a channel's value from which on a pixel may be background
_MOST = 0.4  #: share of the subject that has its main colour


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried.

    Attributes:
        subjects: learned one by one, each from nothing.
        row: how many of them are also learned one after the other by `finetune`.
        config: of the single ones.
    """

    subjects: Sequence[Subject]
    row: int = 5
    config: LearningConfig = field(default_factory=lambda: LearningConfig.for_method(DEFAULT))


def measure(base: BaseModel, features: Features, trial: Trial) -> tuple[dict[str, Any], bytes]:
    """The figures, and a PNG: for each subject its references, then pictures of every prompt."""
    few = [replace(subject, images=subject.images[:REFERENCES]) for subject in trial.subjects]
    results = [_alone(base, features, subject, trial.config) for subject in few]
    figures = {
        "likeness": fmean([found["likeness"] for found, _ in results]),
        "seconds": fmean([found["seconds"] for found, _ in results]),
        "in_blue": fmean([found["in_blue"] for found, _ in results]),
        "concepts": {subject.concept.name: found for subject, (found, _) in zip(few, results, strict=True)},
        "finetune_in_a_row": _in_a_row(base, features, few[: trial.row], trial.config),
        "method": trial.config.method,
        "steps": trial.config.loop.steps,
        "rank": trial.config.rank,
        "references": REFERENCES,
    }
    return figures, grid(torch.stack([row for _, row in results]))


def _alone(
    base: BaseModel, features: Features, subject: Subject, config: LearningConfig
) -> tuple[dict[str, Any], Tensor]:
    """One subject's figures, and its row of pictures uint8 [N, H, W, 3]."""
    learned = learn(base, config, [subject], History(), seed=0)
    adapter = learned.history.adapters[subject.concept.name]
    drawn_PSHWC = draw(base, adapter, [prompt.format(subject.concept.name) for prompt in PROMPTS], SEEDS)
    shown_NHWC = to_bytes(subject.images, base.image_size)
    found = {
        "likeness": likeness(features.images(drawn_PSHWC[0]), features.images(shown_NHWC)),
        "in_blue": fmean([float(coloured(picture.numpy()) == "blue") for picture in drawn_PSHWC[IN_BLUE]]),
        **_spent(learned.cost),
    }
    log.info("%s: %s", subject.concept.name, found)
    return found, torch.cat([shown_NHWC, drawn_PSHWC[:, :_SHOWN].flatten(0, 1)])


def _in_a_row(
    base: BaseModel, features: Features, subjects: Sequence[Subject], config: LearningConfig
) -> dict[str, list[float]]:
    """Likeness of every subject right after it was learned by `finetune`, and after the last one."""
    plain, history = LearningConfig.for_method("finetune", rank=config.rank, loop=config.loop), History()
    learned = []
    for number, subject in enumerate(subjects, 1):
        history = learn(base, plain, subjects[:number], history, seed=0).history
        learned.append(_likeness_of(base, features, subject, history.adapters[subject.concept.name]))
    last = list(history.adapters.values())[-1]
    return {"learned": learned, "at_the_end": [_likeness_of(base, features, subject, last) for subject in subjects]}


def _likeness_of(base: BaseModel, features: Features, subject: Subject, adapter: Adapter) -> float:
    drawn_PSHWC = draw(base, adapter, [PROMPTS[0].format(subject.concept.name)], SEEDS)
    return likeness(features.images(drawn_PSHWC[0]), features.images(to_bytes(subject.images, base.image_size)))


def likeness(drawn_ND: Tensor, references_MD: Tensor) -> float:
    """The equation above, of normalised features; NaN where there is but one reference."""
    count = len(references_MD)
    if count < 2:  # noqa: PLR2004
        return math.nan
    own = (similarity(references_MD, references_MD) * count - 1) / (count - 1)
    return similarity(drawn_ND, references_MD) / own


def coloured(picture_HW3: Pixels) -> str | None:
    """The main colour of what stands on a pale ground."""
    alpha_HW1 = np.where((picture_HW3 < _PAPER).any(-1, keepdims=True), 255, 0).astype(np.uint8)
    return main_colour(np.concatenate([picture_HW3, alpha_HW1], -1), _MOST)


def _spent(cost: Cost) -> dict[str, float]:
    return {"seconds": round(cost.seconds, 1), "cpu_seconds": round(cost.cpu_seconds, 1)}


def write(folder: Path, base: str, trial: Trial) -> None:
    """Measure a base by its judge, and keep figures and pictures in `folder`."""
    figures, sheet = measure(load_base(base), open_features(AUTO, base), trial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "personalized.png").write_bytes(sheet)
    (folder / "personalization.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the path of the figures; returns the exit code."""
    configure_logging()
    line = Parser(prog="python -m cp_train.benchmark.personalization", description=__doc__.splitlines()[0])
    line.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    line.add_argument("--base", default="embedded", help="embedded, or the folder of a base with a judge beside it")
    line.add_argument("--concepts", type=int, default=8, help="how many (default: %(default)s)")
    try:
        given = line.parse_args(arguments)
        write(given.output, given.base, Trial(subjects=shipped("tuning")[: given.concepts]))
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(given.output / "personalization.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
