"""Pictograms: icons and outlines of the listed concepts, in one ink, from which the judge and CLIP's image tower learn.

The two learn from eight drawings of a concept in colour at most, three of them nearly alike; these show it in ten more
hands. They are found by the concept's noun; where a package means something else by it (a "mouse" of a computer), the
package says so.
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cp_train.pretrain.artwork import Package, fetch, icons, member, squeeze

_GLYPH = 220  #: pixels of a font's em
_NO_GLYPH = chr(0x10FFFD)


@dataclass(frozen=True, kw_only=True)
class Icons(Package):
    """An Iconify package whose icons are known by name alone; `suffix` is that of the variant that is taken."""

    suffix: str = ""

    def drawings(self, cache: Path, codes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Code and SVG text of every concept that has an icon; `codes` is noun -> code."""
        by_name = {squeeze(noun): code for noun, code in codes.items() if noun not in self.other}
        found: set[str] = set()
        for name, drawing in icons(fetch(self, cache)):
            code = self._code(name, by_name)
            if code and code not in found:
                found.add(code)
                yield code, drawing

    def _code(self, name: str, by_name: Mapping[str, str]) -> str | None:
        if not name.endswith(self.suffix):
            return None
        plain = name.removesuffix(self.suffix)
        numberless = re.sub(r"-\d+$", "", plain)
        spellings = map(squeeze, (plain, numberless, re.sub(r"-(head|face)$", "", plain)))
        return next((by_name[name] for name in spellings if name in by_name), None)


@dataclass(frozen=True, kw_only=True)
class Font(Package):
    """A font with a glyph for every emoji of one code point; `file` is its place in the package."""

    file: str

    def drawings(self, cache: Path, codes: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        """Code and PNG bytes of every concept that has a glyph; `codes` is noun -> code."""
        font = ImageFont.truetype(io.BytesIO(member(fetch(self, cache), self.file)), _GLYPH)
        for code in codes.values():
            if "-" not in code and _has(font, chr(int(code, 16))):
                yield code, _drawn(font, chr(int(code, 16)))


def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_GLYPH))


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    image = Image.new("RGBA", (2 * _GLYPH, 2 * _GLYPH), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((_GLYPH, _GLYPH), character, font=font, fill=(0, 0, 0, 255), anchor="mm")
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


_NOT_THE_ANIMALS = frozenset({"mouse", "seal"})
_SUIT = frozenset({"diamond"})

PICTOGRAMS: tuple[Icons | Font, ...] = (
    Font(
        style="outline",
        name="@expo-google-fonts/noto-emoji",
        version="0.4.7",
        sha512="Gs7URwtKmCzzdGUTYbG8MIohyaQPgGxIaQG5hvyEAaQiEGJpQy6gyP3NDICE0EJkOJFoe1JFD3Hf1L4a3qe4KA==",
        licence="OFL-1.1",
        author="Google (Noto Emoji, monochrome)",
        file="package/400Regular/NotoEmoji_400Regular.ttf",
    ),
    Icons(
        style="contrast",
        name="@iconify-json/fluent-emoji-high-contrast",
        version="1.2.6",
        sha512="esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        licence="MIT",
        author="Microsoft Corporation (Fluent Emoji High Contrast)",
    ),
    Icons(
        style="game",
        name="@iconify-json/game-icons",
        version="1.2.4",
        sha512="/HDDZxowXgDJcOEwPspUCq5RuDdl25OyZKdtxqqiPJQNTrWIym7r4StLzIVs77DyNzOWWhH5wDqwYR3WHeDfkg==",
        licence="CC-BY-3.0",
        author="Lorc, Delapouite and contributors (game-icons)",
        other=frozenset({"ram", "fountain", "tree", "volcano", "wheel"}),
    ),
    Icons(
        style="material",
        name="@iconify-json/mdi",
        version="1.2.3",
        sha512="O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==",
        licence="Apache-2.0",
        author="Pictogrammers (Material Design Icons)",
        other=_NOT_THE_ANIMALS | {"school", "satellite", "hospital"},
    ),
    Icons(
        style="park",
        name="@iconify-json/icon-park",
        version="1.2.4",
        sha512="S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ==",
        licence="Apache-2.0",
        author="ByteDance (IconPark)",
        other=_NOT_THE_ANIMALS | {"anchor", "ring", "compass", "chicken", "turkey", "telescope", "magic wand"},
    ),
    Icons(
        style="phosphor",
        name="@iconify-json/ph",
        version="1.2.2",
        sha512="PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
        licence="MIT",
        author="Phosphor Icons",
        suffix="-duotone",
        other=_NOT_THE_ANIMALS | _SUIT,
    ),
    Icons(
        style="awesome",
        name="@iconify-json/fa7-solid",
        version="1.2.5",
        sha512="e9EOtXuvDhiv6gBjbuW1q4bSR2tU5HmsDxqbLElQt2w2dR1Byh2mXfPLdRgEVwEr50uQV5tKxE3YAL6LTa+1fA==",
        licence="CC-BY-4.0",
        author="Dave Gandy (Font Awesome)",
        other=_NOT_THE_ANIMALS | _SUIT | {"tram"},
    ),
    Icons(
        style="tabler",
        name="@iconify-json/tabler",
        version="1.2.41",
        sha512="GHg+H/cnr0anaCoV383JONiOMxZQOdojWYNLgL3x0fRE07YW7c+AHiYmIhXet//oq26T830qitdP7l43ojiCXw==",
        licence="MIT",
        author="Paweł Kuna (Tabler Icons)",
        other=_NOT_THE_ANIMALS | {"school", "world map"},
    ),
    Icons(
        style="lucide",
        name="@iconify-json/lucide",
        version="1.2.137",
        sha512="uKz1+tFbv1RFX/mJQNksdnyKJijNfRGSNnxfiyKtr+dLNfA3ERph+IgpXClKGOlV/5GsZwLv2jgJXQ/bjF/JAg==",
        licence="ISC",
        author="Lucide Contributors",
        other=_NOT_THE_ANIMALS | _SUIT | {"radio", "tickets"},
    ),
    Icons(
        style="huge",
        name="@iconify-json/hugeicons",
        version="1.2.35",
        sha512="c06tY90JZnKhOLBAKoQ1z2pqXMRdATuYXslTKwaaIAjLzKsTIsE+GGknY6+qo/SP0U/NG9xQjr4N+zfDqOeQiQ==",
        licence="MIT",
        author="Hugeicons",
        other=_NOT_THE_ANIMALS | _SUIT | {"bar chart", "tickets", "snail", "clipboard"},
    ),
)
"""What they are called as styles does not matter to any model: captions never name them."""
