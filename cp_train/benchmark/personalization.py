"""How well a base takes to a concept: held-out subjects, five pictures each, the job's own default settings.

    likeness = s(drawn, references) / s(references)

with s(X, Y) the mean cosine of the judge's features over all pairs and s(X) over pairs of different pictures: 1 where
what is drawn is as like the references as they are like each other. Beside it prompts that nobody trained on, and what
plain fine-tuning and the default method leave of five learned in a row. What is known of one subject, and of one row,
is kept, so that a run that was interrupted goes on with the next.

    python -m cp_train.benchmark.personalization -o DIR     writes personalization.json, personalized.png, in_a_row.png
"""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
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
from cp_train.files import write_whole
from cp_train.methods import DEFAULT
from cp_train.plan import LearningConfig
from cp_train.pretrain.compose import main_colour
from cp_train.pretrain.progress import Progress
from cp_train.pretrain.render import Pixels
from services.adapter import Adapter
from services.arguments import Parser
from services.base_model import BaseModel, load_base
from services.errors import InputError, PalimpsestError
from services.manifest import canonical
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
_APART = 40  #: of 255, by which a channel of the subject differs from the ground's
_MOST = 0.4  #: share of the subject that has its main colour


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried.

    Attributes:
        subjects: learned one by one, each from nothing.
        row: how many of them are also learned one after the other, by `finetune` and by the method of `config`.
        config: of the single ones, and of a row.
    """

    subjects: Sequence[Subject]
    row: int = 5
    config: LearningConfig = field(default_factory=lambda: LearningConfig.for_method(DEFAULT))


def measure(base: BaseModel, features: Features, trial: Trial, kept: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """The figures, and two PNGs, a row for each subject: its references, then what is drawn of it.

    The first has pictures of every prompt, of a subject learned alone; the second the same prompt's after all in a row
    by `finetune`, then by the method of the trial.

    Args:
        base: to learn on.
        features: to compare by.
        trial: what is tried.
        kept: folder for what is known already.
    """
    few = [replace(subject, images=subject.images[:REFERENCES]) for subject in trial.subjects]
    chain = few[: trial.row]
    plain = LearningConfig.for_method("finetune", rank=trial.config.rank, loop=trial.config.loop)
    alone = [Work(subject.concept.name, [subject], trial.config, _alone) for subject in few]
    in_a_row = [Work(f"{config.method}-in-a-row", chain, config, _in_a_row) for config in (plain, trial.config)]
    works = {kept / work.file(base, features): work for work in (*alone, *in_a_row)}
    progress = Progress("learn", sum(len(work.subjects) for path, work in works.items() if not path.exists()))
    found = [_kept(path, partial(work.look, base, features, work, progress)) for path, work in works.items()]
    results = found[: len(few)]
    rows = {work.config.method: it for work, it in zip(in_a_row, found[len(few) :], strict=True)}
    figures = {
        **{
            key: fmean([found[key] for found, _ in results])
            for key in ("likeness", "seconds", "in_blue", "blue_before")
        },
        "concepts": {subject.concept.name: found for subject, (found, _) in zip(few, results, strict=True)},
        "in_a_row": {method: found for method, (found, _) in rows.items()},
        "method": trial.config.method,
        "steps": trial.config.loop.steps,
        "rank": trial.config.rank,
        "references": REFERENCES,
        "threads": torch.get_num_threads(),
    }
    shown_MNHWC = torch.stack([to_bytes(subject.images, base.image_size) for subject in chain])
    left = grid(torch.cat([shown_MNHWC, *(drawn for _, drawn in rows.values())], 1))
    return figures, grid(torch.stack([row for _, row in results])), left


Found = tuple[dict[str, Any], Tensor]
"""Figures, and pictures uint8."""


@dataclass(frozen=True)
class Work:
    """Some subjects to learn, and how they are looked at.

    Attributes:
        label: what it is called.
        subjects: in order.
        config: how each is learned.
        look: makes the figures and the pictures, and tells of every subject that is learned.
    """

    label: str
    subjects: Sequence[Subject]
    config: LearningConfig
    look: Callable[[BaseModel, Features, "Work", Progress], Found]

    def file(self, base: BaseModel, features: Features) -> str:
        """Where the outcome is kept: another name for whatever else decides it."""
        images = [subject.digest for subject in self.subjects]
        told = {"base": base.ref.revision, "features": features.digest, "images": images, **self.config.flat()}
        return f"{self.label}-{hashlib.sha256(canonical(told)).hexdigest()[:16]}.npz"


def _kept(path: Path, work: Callable[[], Found]) -> Found:
    """What `work` returns, or returned before."""
    if not path.exists():
        found, row = work()
        data = BytesIO()
        np.savez(data, figures=json.dumps(found), row=row.numpy())
        write_whole(path, data.getvalue())
    with np.load(path) as stored:
        return json.loads(str(stored["figures"])), torch.from_numpy(stored["row"])


def _alone(base: BaseModel, features: Features, work: Work, progress: Progress) -> Found:
    """One subject's figures, and its row of pictures uint8 [N, H, W, 3]."""
    (subject,) = work.subjects
    learned = learn(base, work.config, [subject], History(), seed=0)
    progress.update(progress.done + 1, work.label)
    adapter = learned.history.adapters[subject.concept.name]
    drawn_PSHWC = draw(base, adapter, [prompt.format(subject.concept.name) for prompt in PROMPTS], SEEDS)
    shown_NHWC = to_bytes(subject.images, base.image_size)
    found = {
        "likeness": likeness(features.images(drawn_PSHWC[0]), features.images(shown_NHWC)),
        "in_blue": _blue(drawn_PSHWC[IN_BLUE]),
        "blue_before": _blue(drawn_PSHWC[0]),
        **_spent(learned.cost),
    }
    log.info("%s: %s", subject.concept.name, found)
    return found, torch.cat([shown_NHWC, drawn_PSHWC[:, :_SHOWN].flatten(0, 1)])


def _blue(pictures_SHWC: Tensor) -> float:
    return fmean([float(coloured(picture.numpy()) == "blue") for picture in pictures_SHWC])


def _in_a_row(base: BaseModel, features: Features, work: Work, progress: Progress) -> Found:
    """Likeness of every subject right after it was learned and after the last one; pictures [M, N, H, W, 3] of then."""
    history = History()
    learned = []
    for number, subject in enumerate(work.subjects, 1):
        history = learn(base, work.config, work.subjects[:number], history, seed=0).history
        learned.append(_drawn(base, features, subject, history.adapters[subject.concept.name])[0])
        progress.update(progress.done + 1, f"{subject.concept.name}, {work.label}")
    last = list(history.adapters.values())[-1]
    at_the_end = [_drawn(base, features, subject, last) for subject in work.subjects]
    found = {"learned": learned, "at_the_end": [likeness for likeness, _ in at_the_end]}
    return found, torch.stack([drawn_SHWC[:_SHOWN] for _, drawn_SHWC in at_the_end])


def _drawn(base: BaseModel, features: Features, subject: Subject, adapter: Adapter) -> tuple[float, Tensor]:
    """Likeness under the first prompt, and its pictures uint8 [S, H, W, 3]."""
    drawn_SHWC = draw(base, adapter, [PROMPTS[0].format(subject.concept.name)], SEEDS)[0]
    shown_NHWC = to_bytes(subject.images, base.image_size)
    return likeness(features.images(drawn_SHWC), features.images(shown_NHWC)), drawn_SHWC


def likeness(drawn_ND: Tensor, references_MD: Tensor) -> float:
    """The equation above, of normalised features; NaN where there is but one reference."""
    count = len(references_MD)
    if count < 2:  # noqa: PLR2004
        return math.nan
    own = (similarity(references_MD, references_MD) * count - 1) / (count - 1)
    return similarity(drawn_ND, references_MD) / own


def coloured(picture_HW3: Pixels) -> str | None:
    """The main colour of what stands on a ground; the ground's is that of most of the border."""
    sides = (picture_HW3[0], picture_HW3[-1], picture_HW3[:, 0], picture_HW3[:, -1])
    ground_3 = np.median(np.concatenate(sides), axis=0)
    apart_HW = np.abs(picture_HW3.astype(float) - ground_3).max(-1)
    alpha_HW1 = np.where(apart_HW > _APART, 255, 0).astype(np.uint8)[..., None]
    return main_colour(np.concatenate([picture_HW3, alpha_HW1], -1), _MOST)


def _spent(cost: Cost) -> dict[str, float]:
    return {"seconds": round(cost.seconds, 1), "cpu_seconds": round(cost.cpu_seconds, 1)}


def write(folder: Path, base: str, trial: Trial, *, kept: Path) -> None:
    """Measure a base by its judge, and leave figures and pictures in `folder`; `kept` as in `measure`."""
    figures, sheet, left = measure(load_base(base), open_features(AUTO, base), trial, kept)
    write_whole(folder / "personalized.png", sheet)
    write_whole(folder / "in_a_row.png", left)
    write_whole(folder / "personalization.json", json.dumps(figures, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the path of the figures; returns the exit code."""
    configure_logging()
    line = Parser(prog="python -m cp_train.benchmark.personalization", description=__doc__.splitlines()[0])
    line.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    line.add_argument("--base", default="embedded", help="embedded, or the folder of a base with a judge beside it")
    line.add_argument("--concepts", type=int, default=8, help="how many (default: %(default)s)")
    try:
        given = line.parse_args(arguments)
        known = shipped("reporting")
        if not 1 <= given.concepts <= len(known):
            raise InputError(f"concepts: from 1 to {len(known)}, not {given.concepts}.", param="concepts")
        trial = Trial(subjects=known[: given.concepts])
        write(given.output, given.base, trial, kept=given.output / "kept")
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(given.output / "personalization.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
