"""The U-Net's training set: latents of many scenes, computed once, with what is needed to caption them.

Per picture: itself, some tints and some grounds; and random pairs. Each draw chooses a kind of scene, then a style,
then one of its scenes evenly, so that the mix does not depend on how many variants of each are stored.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cp_train.pretrain import vae as autoencoder
from cp_train.pretrain.captions import caption
from cp_train.pretrain.compose import GROUNDS, TINTS, Scene
from cp_train.pretrain.loop import dice
from cp_train.pretrain.progress import Progress
from cp_train.pretrain.scenes import Painter, tensor
from cp_train.pretrain.splits import Concept

STYLE_SHARE: Mapping[str, float] = {
    "3d": 0.40,
    "fluent": 0.34,
    "flat": 0.12,
    "noto": 0.05,
    "twemoji": 0.04,
    "blob": 0.02,
    "firefox": 0.015,
    "streamline": 0.015,
}
"""How often each style is drawn: the first three are views of the same drawings."""
UNET_KIND_SHARE: Mapping[str, float] = {"plain": 0.7, "tint": 0.1, "ground": 0.1, "pair": 0.1}
"""How often the U-Net is shown each kind of scene; of the kinds that the pool has."""
SIMPLE = ("3d", "fluent")
"""Whose plain pictures are drawn first of all."""


@dataclass(frozen=True)
class Pool:
    """Latents [N, C, h, w] (float16) and a row of scene numbers for each: see `_row`."""

    latents_NCHW: npt.NDArray[np.float16]
    rows_N6: npt.NDArray[np.int16]
    concepts: tuple[Concept, ...]
    styles: tuple[str, ...]

    def draw(self, count: int, chance: random.Random, *, simple: float = 0.0) -> tuple[Tensor, list[str]]:
        """Latents [B, C, h, w] in float32 and a caption for each; `simple` is the share of SIMPLE beside all else."""
        kinds = [kind for kind in UNET_KIND_SHARE if any(group[0] == kind for group in self._groups)]
        picked = [self._pick(kinds, chance, simple) for _ in range(count)]
        texts = [caption(*self.scene(row, chance)) for row in picked]
        return torch.from_numpy(self.latents_NCHW[picked]).float(), texts

    def _pick(self, kinds: list[str], chance: random.Random, simple: float) -> int:
        if chance.random() < simple:
            return chance.choice(self._groups["plain", chance.choice(SIMPLE)])
        kind = chance.choices(kinds, [UNET_KIND_SHARE[k] for k in kinds])[0]
        style = chance.choices(self.styles, [STYLE_SHARE[s] for s in self.styles])[0]
        return chance.choice(self._groups[kind, style])

    def scene(self, row: int, chance: random.Random) -> tuple[Scene, random.Random, str | None]:
        """The arguments of `caption` for a row."""
        subject, style, second, tint, ground, own = self.rows_N6[row].tolist()
        scene = Scene(
            subject=self.concepts[subject],
            style=self.styles[style],
            second=self.concepts[second] if second >= 0 else None,
            tint=list(TINTS)[tint] if tint >= 0 else None,
            ground=list(GROUNDS)[ground] if ground >= 0 else None,
        )
        return scene, chance, _COLOURS[own] if own >= 0 else None

    @cached_property
    def _groups(self) -> dict[tuple[str, str], list[int]]:
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, (_, style, second, tint, ground, _) in enumerate(self.rows_N6.tolist()):
            kind = "pair" if second >= 0 else "tint" if tint >= 0 else "ground" if ground >= 0 else "plain"
            groups[kind, self.styles[style]].append(number)
        return groups

    def save(self, path: Path) -> None:
        """Write as one npz file, whole or not at all."""
        partial = path.with_name(path.stem + ".partial.npz")
        np.savez(partial, latents=self.latents_NCHW, rows=self.rows_N6, styles=np.array(self.styles))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, concepts: tuple[Concept, ...]) -> "Pool":
        """What `save` wrote, for the same concepts."""
        with np.load(path) as stored:
            return cls(stored["latents"], stored["rows"], concepts, tuple(map(str, stored["styles"])))


_COLOURS = (*TINTS, "grey", "black", "white")


def build(painter: Painter, vae: Any, *, variants: int, pairs: int, seed: int = 15) -> Pool:
    """Paint and encode: each picture plain, in `variants` tints, on `variants` grounds; and `pairs` pairs."""
    scenes = list(_scenes(painter, variants, pairs, dice(seed)))
    rows = np.array([_row(painter, scene) for scene in scenes], np.int16)
    progress = Progress("pool", len(scenes))
    latents = []
    for start in range(0, len(scenes), 64):
        x_BCHW = tensor([painter.paint(scene) for scene in scenes[start : start + 64]])
        latents.append(autoencoder.encode(vae, x_BCHW).numpy().astype(np.float16))
        progress.update(min(start + 64, len(scenes)))
    return Pool(np.concatenate(latents), rows, painter.concepts, painter.styles)


def _scenes(painter: Painter, variants: int, pairs: int, chance: random.Random) -> Iterator[Scene]:
    for concept in painter.concepts:
        for style in painter.styles_of(concept):
            yield Scene(subject=concept, style=style)
            for tint in chance.sample(list(TINTS), variants):
                yield Scene(subject=concept, style=style, tint=tint)
            for ground in chance.sample(list(GROUNDS), variants):
                yield Scene(subject=concept, style=style, ground=ground)
    for number in range(pairs):
        style = painter.styles[number % len(painter.styles)]
        yield painter.pair(chance, style)


def _row(painter: Painter, scene: Scene) -> list[int]:
    """Subject, style, second, tint, ground and own colour as numbers, -1 for none."""
    own = painter.own_colour(scene)
    return [
        painter.concepts.index(scene.subject),
        painter.styles.index(scene.style),
        painter.concepts.index(scene.second) if scene.second else -1,
        list(TINTS).index(scene.tint) if scene.tint else -1,
        list(GROUNDS).index(scene.ground) if scene.ground else -1,
        _COLOURS.index(own) if own else -1,
    ]
