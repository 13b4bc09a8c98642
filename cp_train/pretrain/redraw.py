"""Drawings as another hand might have made them: an SVG's shapes moved, stretched, recoloured, outlined, or left out.

A thing is known in a few hands only, and what a network must not learn is how those draw. A picture can be changed as a
whole (`augment.py`); a drawing is still in parts, and each of them can be changed by itself, as hands differ.
"""

import colorsys
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_SHAPE = re.compile(r"<(path|circle|ellipse|rect|polygon|polyline|line)\b([^>]*?)(/?)>")
_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b(?=[\"';)])")
_GRADIENT = re.compile(r"<(linearGradient|radialGradient)\b[^>]*\bid=\"([^\"]+)\"[^>]*?>(.*?)</\1>", re.DOTALL)
_STOP = re.compile(r"stop-color=\"(#[0-9a-fA-F]{3,6})\"")
_BOX = re.compile(r"viewBox=\"([^\"]+)\"")
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+))"
_START = re.compile(rf"\bd=\"\s*[mM]\s*{_NUMBER}[\s,]*{_NUMBER}")
_INKS = ("#000", "#222", "#3e4347", "#5c3b1e", "#1b2a4a")
_MARGIN = 0.2  #: of the side, around what may have moved out of the box
_MANY = 5  #: shapes of which one can be spared

Box = tuple[float, float, float]
"""Left, top and side of a square."""
Colour = tuple[float, float, float]
"""Red, green and blue, 0..1."""


@dataclass(frozen=True)
class Hand:
    """How one picture is drawn: all of it is drawn by lot.

    Attributes:
        flat: gradients become their mean colour.
        hue, saturation, brightness: by which all colours change.
        outline: an ink for the edges, or none.
        width: of the outline, as a share of the side.
        lines: nothing but outlines.
        loose: how much shapes move against each other; 0 is not at all.
    """

    flat: bool
    hue: float
    saturation: float
    brightness: float
    outline: str
    width: float
    lines: bool
    loose: float

    @classmethod
    def any(cls, chance: random.Random) -> "Hand":
        """One of them."""
        lines = chance.random() < 0.1  # noqa: PLR2004
        return cls(
            flat=chance.random() < 0.5,  # noqa: PLR2004
            hue=chance.uniform(-0.04, 0.04) if chance.random() < 0.8 else chance.uniform(-0.5, 0.5),  # noqa: PLR2004
            saturation=chance.uniform(0.6, 1.3),
            brightness=chance.uniform(0.85, 1.12),
            outline=chance.choice(_INKS) if lines or chance.random() < 0.35 else "",  # noqa: PLR2004
            width=chance.uniform(0.006, 0.03),
            lines=lines,
            loose=chance.choice((0.0, 0.5, 1.0, 1.0, 1.6)),
        )


def redrawn(svg: str, chance: random.Random) -> str:
    """An SVG document by another hand; `svg` has a viewBox, and its colours as attributes."""
    hand, box = Hand.any(chance), _box(svg)
    if hand.flat:
        svg = flattened(svg)
    svg = _COLOUR.sub(_recolouring(hand, chance), svg)
    spare = 0.08 if len(_SHAPE.findall(svg)) > _MANY else 0.0
    svg = _SHAPE.sub(lambda shape: _reshaped(shape, hand, box, chance, spare), svg)
    return _framed(svg, box, chance)


def flattened(svg: str) -> str:
    """Every gradient's mean colour in its place."""
    means = {}
    for _, name, body in _GRADIENT.findall(svg):
        if stops := [_rgb(stop) for stop in _STOP.findall(body)]:
            means[name] = _hex(*(sum(channel) / len(stops) for channel in zip(*stops, strict=True)))
    return re.sub(r"url\(#([^)]+)\)", lambda found: means.get(found[1], found[0]), svg)


def _recolouring(hand: Hand, chance: random.Random) -> Callable[[re.Match[str]], str]:
    """Each colour of a drawing becomes one other colour, near to where all of them went."""
    known: dict[str, str] = {}

    def recoloured(found: re.Match[str]) -> str:
        colour = found[0].lower()
        if colour not in known:
            hue, light, saturation = colorsys.rgb_to_hls(*_rgb(colour))
            known[colour] = _hex(
                *colorsys.hls_to_rgb(
                    (hue + hand.hue + chance.gauss(0, 0.015)) % 1,
                    min(1.0, max(0.0, light * hand.brightness + chance.gauss(0, 0.04))),
                    min(1.0, saturation * hand.saturation * chance.uniform(0.9, 1.1)),
                )
            )
        return known[colour]

    return recoloured


def _reshaped(shape: re.Match[str], hand: Hand, box: Box, chance: random.Random, spare: float) -> str:
    """One shape moved, turned and stretched about where it begins, outlined, or left out."""
    tag, attributes, end = shape.groups()
    left, top, side = box
    if chance.random() < spare and "opacity=" not in attributes:
        attributes += ' opacity="0"'
    if hand.loose and "transform=" not in attributes:
        start = _START.search(attributes)
        x, y = (float(start[1]), float(start[2])) if start else (left + side / 2, top + side / 2)
        moved = (chance.gauss(0, 0.018 * side * hand.loose) for _ in range(2))
        turn, *stretch = chance.gauss(0, 4 * hand.loose), *(1 + chance.gauss(0, 0.07 * hand.loose) for _ in range(2))
        attributes += f' transform="{_about(x, y, moved=tuple(moved), turn=turn, stretch=tuple(stretch))}"'
    if hand.outline and "stroke" not in attributes:
        attributes += f' stroke="{hand.outline}" stroke-width="{hand.width * side:.3f}" stroke-linejoin="round"'
    if hand.lines:
        attributes = re.sub(r"\bfill=\"(?!none)[^\"]*\"", 'fill="#fff"', attributes)
    return f"<{tag}{attributes}{end}>"


def _framed(svg: str, box: Box, chance: random.Random) -> str:
    """All of it turned and stretched a little, in a box that holds what moved out of the old one."""
    left, top, side = box
    margin = _MARGIN * side
    edge = svg.index(">") + 1
    head = _BOX.sub(f'viewBox="{left - margin} {top - margin} {side + 2 * margin} {side + 2 * margin}"', svg[:edge])
    stretch = chance.uniform(0.85, 1.15), chance.uniform(0.85, 1.15)
    about = _about(left + side / 2, top + side / 2, moved=(0, 0), turn=chance.gauss(0, 4), stretch=stretch)
    return f'{head}<g transform="{about}">{svg[edge:].replace("</svg>", "</g></svg>")}'


def _about(x: float, y: float, *, moved: tuple[float, ...], turn: float, stretch: tuple[float, ...]) -> str:
    """The transform about a point."""
    there = f"translate({x + moved[0]:.3f} {y + moved[1]:.3f})"
    return f"{there} rotate({turn:.2f}) scale({stretch[0]:.3f} {stretch[1]:.3f}) translate({-x:.3f} {-y:.3f})"


def _box(svg: str) -> Box:
    """Left, top and side of the square that holds the viewBox."""
    found = _BOX.search(svg)
    assert found is not None  # every drawing of ours has one
    left, top, width, height = map(float, found[1].split())
    return left, top, max(width, height)


def _rgb(colour: str) -> Colour:
    digits = colour.lstrip("#")
    digits = digits if len(digits) > 3 else "".join(2 * digit for digit in digits)  # noqa: PLR2004
    red, green, blue = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    return red, green, blue


def _hex(*channels: float) -> str:
    return "#" + "".join(f"{min(255, max(0, round(255 * channel))):02x}" for channel in channels)
