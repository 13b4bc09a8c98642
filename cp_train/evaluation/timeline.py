"""One concept over the versions of a branch: the same seeds, a row for each version, cut from their sample grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

_SIDE = 96  # pixels of a picture; a base of 512 would make a page of many megabytes
_LABEL, _GAP = 44, 2
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_QUALITY = 88


@dataclass(frozen=True)
class Sheet:
    """A version's sample grid.

    Attributes:
        version: what it is called.
        concepts: one for each row of the grid.
        png: the grid; a row for each concept, a column for each seed.
    """

    version: str
    concepts: Sequence[str]
    png: bytes

    def strip(self, concept: str) -> Image.Image | None:
        """A concept's row, small; None if the version has none, or the grid is not one of ours."""
        if concept not in self.concepts:
            return None
        try:
            with Image.open(BytesIO(self.png), formats=("PNG",)) as grid:
                side = grid.height // len(self.concepts)
                columns = grid.width // side if side else 0
                if not columns or (columns * side, len(self.concepts) * side) != grid.size:
                    return None
                top = self.concepts.index(concept) * side
                row = grid.convert("RGB").crop((0, top, grid.width, top + side))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
            return None
        small = min(_SIDE, side)
        return row.resize((columns * small, small), Image.Resampling.LANCZOS)


def over_versions(sheets: Sequence[Sheet], concept: str) -> bytes | None:
    """A JPEG of a concept's rows, oldest version first; None if nobody drew it."""
    rows = [(sheet.version, strip) for sheet in sheets if (strip := sheet.strip(concept))]
    if not rows:
        return None
    height = max(strip.height for _, strip in rows) + _GAP
    page = Image.new("RGB", (_LABEL + max(strip.width for _, strip in rows), height * len(rows)), _PAPER)
    ink, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, (version, strip) in enumerate(rows):
        ink.text((4, number * height + height // 2 - 8), version, fill=_INK, font=font)
        page.paste(strip, (_LABEL, number * height))
    out = BytesIO()
    page.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
