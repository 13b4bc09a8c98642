"""What the embedded base model is measured by: `metrics.json` and the uncurated grids of the model card.

KID (`cp_train/evaluation/distances.py`) on the judge's normalised features, not scaled,
between pictures generated of the judged concepts and real ones of the same concepts in the held-out styles; beside
it the KID of real pictures in the training styles against the same, which is what the styles alone make.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cp_train.evaluation.distances import unbiased_kid
from cp_train.evaluation.draw import GUIDANCE, STEPS
from cp_train.pretrain import clip, judge, vae
from cp_train.pretrain.captions import plain, with_article
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.progress import Progress
from cp_train.pretrain.render import Pixels, on
from cp_train.pretrain.splits import HELD_OUT_STYLES, JUDGE_HELD_OUT_STYLES, TRAIN_STYLES, Concept

SEEDS = 4

COMPOSED = (
    "{blue}",
    "{two} in green",
    "a photo of {one} on a red background",
    "{one} and {two}",
    "a sketch of {one}",
    "a flat drawing of {two}",
)
"""Prompts of the second grid: how words combine; of two things, and the first of them in blue."""


@dataclass(frozen=True)
class Models:
    """Everything that is measured."""

    pipeline: Any
    clip: Any
    judge: judge.Judge


def measure(models: Models, pictures: Library, concepts: tuple[Concept, ...], folder: Path) -> dict[str, Any]:
    """All figures; the grids go to `folder`."""
    judged = tuple(concept for concept in concepts if concept.part == "judged")
    drawn = list(_drawn(models.pipeline, judged))
    grid(drawn, folder / "judged.png", columns=5 * SEEDS)
    grid(composed(models.pipeline, judged), folder / "composed.png", columns=SEEDS * 3)
    return {
        "judge": _judge_figures(models.judge, pictures, concepts),
        "recognised": recognised(models.judge, drawn, judged),
        "kid": kid_figures(models.judge, drawn, pictures, judged),
        "retrieval": clip.retrieval(models.clip, models.pipeline.tokenizer, pictures, _trained(concepts)),
        "vae_db": _vae_figures(models.pipeline.vae, pictures, concepts),
        "seconds": timing(models.pipeline),
        "settings": {"steps": STEPS, "guidance": GUIDANCE, "seeds": SEEDS, "threads": torch.get_num_threads()},
    }


def _drawn(pipeline: Any, judged: tuple[Concept, ...]) -> Iterator[Pixels]:
    """SEEDS pictures of each concept."""
    progress = Progress("draw", len(judged))
    for number, concept in enumerate(judged, 1):
        yield from generate(pipeline, [plain(concept.noun)] * SEEDS)
        progress.update(number)


def generate(pipeline: Any, prompts: list[str], *, seed: int = 0) -> list[Pixels]:
    """One picture a prompt; the n-th prompt's noise has seed `seed + n`."""
    chances = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    out = pipeline(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=chances, output_type="np")
    return [np.asarray((image * 255).round(), np.uint8) for image in out.images]


def composed(pipeline: Any, judged: tuple[Concept, ...]) -> list[Pixels]:
    """SEEDS pictures of every composed prompt."""
    return [picture for prompt in composed_prompts(judged) for picture in generate(pipeline, [prompt] * SEEDS)]


def composed_prompts(judged: tuple[Concept, ...]) -> list[str]:
    """Every prompt of COMPOSED for two pairs of concepts, the first and the last of the list and two inside."""
    pairs = ((judged[0], judged[-1]), (judged[len(judged) // 2], judged[len(judged) // 3]))
    return [text.format(**_phrases(one.noun, two.noun)) for text in COMPOSED for one, two in pairs]


def _phrases(one: str, two: str) -> dict[str, str]:
    return {"one": with_article(one), "two": with_article(two), "blue": with_article(f"blue {one}", one)}


def recognised(network: judge.Judge, drawn: list[Pixels], judged: tuple[Concept, ...]) -> float:
    """The share of pictures the judge takes for what was asked, among the judged concepts."""
    codes = tuple(concept.code for concept in judged)
    asked = [code for code in codes for _ in range(len(drawn) // len(codes))]
    said = judge.verdicts(network, drawn, codes)
    return sum(a == b for a, b in zip(asked, said, strict=True)) / len(asked)


def kid_figures(
    network: judge.Judge, drawn: list[Pixels], pictures: Library, judged: tuple[Concept, ...]
) -> dict[str, float]:
    """KID of the generated and of real training pictures against the held-out styles."""
    unseen = judge.features(network, _real(pictures, judged, HELD_OUT_STYLES))
    seen = judge.features(network, _real(pictures, judged, TRAIN_STYLES))
    return {"generated": unbiased_kid(judge.features(network, drawn), unseen), "real": unbiased_kid(seen, unseen)}


def megabytes(folder: Path) -> dict[str, float]:
    """What ships: all weights of a model, and the judge's."""
    sizes = {path: path.stat().st_size / 1e6 for path in folder.rglob("*.safetensors")}
    judges = sum(size for path, size in sizes.items() if path.parent.name == "judge")
    return {"all": round(sum(sizes.values()), 1), "judge": round(judges, 1)}


def timing(pipeline: Any) -> dict[str, float]:
    """Seconds for one picture and for eight at once, the better of three tries."""
    return {f"batch_{count}": min(_timed(pipeline, count) for _ in range(3)) for count in (1, 8)}


def _timed(pipeline: Any, count: int) -> float:
    start = time.perf_counter()
    generate(pipeline, ["a photo of a cat"] * count)
    return round(time.perf_counter() - start, 3)


def _judge_figures(network: judge.Judge, pictures: Library, concepts: tuple[Concept, ...]) -> dict[str, float]:
    """Top-1 in each held-out style, among all the concepts that the judge has."""
    known = [concept for concept in concepts if concept.code in network.codes]
    found = {style: pictures.select(known, [style]) for style in JUDGE_HELD_OUT_STYLES}
    figures = {style: judge.accuracy(network, real) for style, real in found.items()}
    return (
        figures | {"concepts": len(network.codes)} | {f"{style}_pictures": len(real) for style, real in found.items()}
    )


def _vae_figures(model: Any, pictures: Library, concepts: tuple[Concept, ...]) -> dict[str, float]:
    secret = tuple(concept for concept in concepts if not concept.trained)
    sets = {
        "trained": _real(pictures, _trained(concepts), TRAIN_STYLES),
        "held_out_concepts": _real(pictures, secret, TRAIN_STYLES),
        "held_out_styles": _real(pictures, _trained(concepts), HELD_OUT_STYLES),
    }
    return {name: vae.reconstruction(model, real) for name, real in sets.items()}


def _trained(concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    return tuple(concept for concept in concepts if concept.trained)


def _real(pictures: Library, concepts: tuple[Concept, ...], styles: tuple[str, ...]) -> list[Pixels]:
    return [on(rgba) for rgba in pictures.select(concepts, styles).rgba_NHW4]


def grid(drawn: list[Pixels], path: Path, *, columns: int) -> None:
    """Pictures in rows on one sheet."""
    side = drawn[0].shape[0]
    sheet = Image.new("RGB", (columns * side, -(-len(drawn) // columns) * side), "white")
    for number, picture in enumerate(drawn):
        sheet.paste(Image.fromarray(picture), (number % columns * side, number // columns * side))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def rows(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested figures as flat (name, value) rows."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
