"""Draws scenes at random and paints them from the library: what CLIP and the judge learn from, and the U-Net's pool.

The kinds are plain, tinted, on a coloured ground, and pairs of two subjects in one style.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cp_train.pretrain.compose import GROUNDS, TINTS, Scene, main_colour, painted
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.render import Pixels
from cp_train.pretrain.splits import PICTOGRAM_STYLES, Concept

CLIP_KIND_SHARE: Mapping[str, float] = {"plain": 0.52, "tint": 0.14, "ground": 0.16, "pair": 0.18}
"""How often CLIP, and the tokenizer by its caption, meets each kind of scene; the U-Net's are others (`pool.py`)."""
_GROUNDED, _INKED = 1 / 3, 0.5
"""Shares of single subjects on a coloured ground, and of pictograms in coloured ink."""
_REDRAWN = 0.75
"""Share of single subjects in another hand, where there is one."""


@dataclass(frozen=True)
class Painter:
    """Paints scenes of `concepts` from the pictures of a library; single subjects in other hands, too, if there are."""

    pictures: Library
    concepts: tuple[Concept, ...]
    styles: tuple[str, ...]
    redrawn: Library | None = None
    _colours: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def scene(self, chance: random.Random, subject: Concept | None = None) -> Scene:
        """A random scene, of a given subject if one is given."""
        subject = subject or chance.choice(self.concepts)
        style = chance.choice(self.styles_of(subject))
        kind = chance.choices(list(CLIP_KIND_SHARE), list(CLIP_KIND_SHARE.values()))[0]
        if kind == "tint":
            return Scene(subject=subject, style=style, tint=chance.choice(list(TINTS)))
        if kind == "ground":
            return Scene(subject=subject, style=style, ground=chance.choice(list(GROUNDS)))
        if kind == "pair":
            return Scene(subject=subject, style=style, second=self._other(chance, subject, style))
        return Scene(subject=subject, style=style)

    def single(self, chance: random.Random, subject: Concept, *, pictograms: float = 0.4) -> Pixels:
        """A picture [H, W, 3] of the subject alone in any style, or, this share of them, as a pictogram.

        For networks that tell what a thing is, not what it is called.
        """
        ground = chance.choice(list(GROUNDS)) if chance.random() < _GROUNDED else None
        drawn = self._drawn(subject, PICTOGRAM_STYLES)
        if not drawn or chance.random() >= pictograms:
            scene = Scene(subject=subject, style=chance.choice(self.styles_of(subject)), ground=ground)
            return painted(scene, self._in_any_hand(chance, subject, scene.style))
        inked = ground == "black" or chance.random() < _INKED
        tint = chance.choice(list(TINTS)) if inked else None
        return self.paint(Scene(subject=subject, style=chance.choice(drawn), tint=tint, ground=ground))

    def pair(self, chance: random.Random, style: str) -> Scene:
        """A random pair of subjects that the style has drawings of."""
        drawn = [concept for concept in self.concepts if (concept.code, style) in self.pictures.index]
        first, second = chance.sample(drawn, 2)
        return Scene(subject=first, style=style, second=second)

    def styles_of(self, concept: Concept) -> list[str]:
        """The styles that have a drawing of the concept."""
        return self._drawn(concept, self.styles)

    def _drawn(self, concept: Concept, styles: tuple[str, ...]) -> list[str]:
        return [style for style in styles if (concept.code, style) in self.pictures.index]

    def own_colour(self, scene: Scene) -> str | None:
        """The main colour of the scene's subject as drawn."""
        key = scene.subject.code, scene.style
        if key not in self._colours:
            self._colours[key] = main_colour(self.rgba(scene.subject, scene.style))
        return self._colours[key]

    def paint(self, scene: Scene) -> Pixels:
        """The scene's picture [H, W, 3]."""
        second = self.rgba(scene.second, scene.style) if scene.second else None
        return painted(scene, self.rgba(scene.subject, scene.style), second)

    def _other(self, chance: random.Random, subject: Concept, style: str) -> Concept:
        """Another concept that the style has a drawing of.

        Raises:
            IndexError: there is none.
        """
        drawn = [c for c in self.concepts if c != subject and (c.code, style) in self.pictures.index]
        return chance.choice(drawn)

    def _in_any_hand(self, chance: random.Random, concept: Concept, style: str) -> Pixels:
        """The drawing of a concept in a style, mostly redrawn where it can be."""
        rows = self.redrawn.rows.get((concept.code, style)) if self.redrawn else None
        if self.redrawn is None or not rows or chance.random() >= _REDRAWN:
            return self.rgba(concept, style)
        return np.asarray(self.redrawn.rgba_NHW4[chance.choice(rows)])

    def rgba(self, concept: Concept, style: str) -> Pixels:
        """The drawing of a concept in a style [H, W, 4]."""
        return np.asarray(self.pictures.rgba_NHW4[self.pictures.index[concept.code, style]])


def tensor(pictures: list[Pixels]) -> Tensor:
    """RGB pictures as one tensor [B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
