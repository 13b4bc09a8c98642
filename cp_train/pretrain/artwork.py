"""The licensed artwork: pinned npm packages, what each holds, and whose it is.

Every package is fetched by the ordinary npm client at an exact version, checked against its SHA-512 and read
from its tarball; nothing of a package is ever executed. A *drawing* is one concept in one style, addressed by
the concept's Unicode code points ("1f98a"), which is the one name all packages can be brought to.
"""

import base64
import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "ISC": "https://opensource.org/license/isc-license-txt",
    "MIT": "https://opensource.org/license/mit",
    "OFL-1.1": "https://openfontlicense.org/open-font-license-official-text/",
}
"""Where each package's licence is to be read."""


class ArtworkError(RuntimeError):
    """A package could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One pinned npm package; `style` is our name of its drawing style.

    `other` names what is left out: it means another thing here than elsewhere. `bitmaps` says that its drawings are
    WebP files, not vector graphics.
    """

    style: str
    name: str
    version: str
    sha512: str
    licence: str
    author: str
    bitmaps: bool = False
    other: frozenset[str] = frozenset()

    @property
    def share_alike(self) -> bool:
        """Whether what is made of it must have its licence."""
        return "-SA-" in self.licence

    @property
    def tarball(self) -> str:
        """The file name `npm pack` gives the package."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


LABELS = Package(
    style="labels",
    name="emojibase-data",
    version="17.0.0",
    sha512="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    licence="MIT",
    author="Miles Johnson",
)
STYLES: tuple[Package, ...] = (
    Package(
        style="noto",
        name="@iconify-json/noto",
        version="1.2.9",
        sha512="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        licence="Apache-2.0",
        author="Google (Noto Emoji)",
    ),
    Package(
        style="twemoji",
        name="@iconify-json/twemoji",
        version="1.2.5",
        sha512="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        licence="CC-BY-4.0",
        author="Twitter and contributors (Twemoji)",
    ),
    Package(
        style="fluent",
        name="@iconify-json/fluent-emoji",
        version="1.2.7",
        sha512="D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        licence="MIT",
        author="Microsoft Corporation (Fluent Emoji)",
    ),
    Package(
        style="flat",
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        licence="MIT",
        author="Microsoft Corporation (Fluent Emoji Flat)",
    ),
    Package(
        style="3d",
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        licence="MIT",
        author="Microsoft Corporation (Fluent Emoji 3D), packaged by LobeHub",
        bitmaps=True,
    ),
    Package(
        style="emojione",
        name="@iconify-json/emojione",
        version="1.2.3",
        sha512="T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        licence="CC-BY-4.0",
        author="Emoji One (v2, EmojiTwo)",
    ),
    Package(
        style="blob",
        name="@iconify-json/noto-v1",
        version="1.2.5",
        sha512="/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        licence="Apache-2.0",
        author="Google (Noto Emoji v1)",
    ),
    Package(
        style="firefox",
        name="@iconify-json/fxemoji",
        version="1.2.2",
        sha512="UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        licence="Apache-2.0",
        author="Mozilla (Firefox OS Emoji)",
    ),
    Package(
        style="streamline",
        name="@iconify-json/streamline-emojis",
        version="1.2.4",
        sha512="iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        licence="CC-BY-4.0",
        author="Streamline (Streamline Emojis)",
        other=frozenset({"turkey"}),  # the flag
    ),
    Package(
        style="openmoji",
        name="@iconify-json/openmoji",
        version="1.2.29",
        sha512="vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        licence="CC-BY-SA-4.0",
        author="OpenMoji",
    ),
)


def fetch(package: Package, cache: Path) -> Path:
    """The package's tarball in `cache`, downloaded by `npm pack` unless it is there, and verified.

    Raises:
        ArtworkError: npm failed, or the file is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / package.tarball
    if not path.exists():
        _npm_pack(package, cache)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise ArtworkError(f"{path.name} is not the pinned {package.name}@{package.version}: delete it and retry")
    return path


def _npm_pack(package: Package, cache: Path) -> None:
    spec = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory(dir=cache) as folder:  # whose files are whole when npm has ended
        command = ["npm", "pack", spec, "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ArtworkError(f"{spec} is fetched by npm, which is not here: install Node.js") from error
        if done.returncode:
            raise ArtworkError(f"npm could not fetch {spec}: {done.stderr.strip()[-300:]}")
        (Path(folder) / package.tarball).replace(cache / package.tarball)


def code(hexcode: str) -> str:
    """Code points in one spelling: lower case, without the variation selector."""
    return "-".join(part for part in hexcode.lower().removesuffix(".webp").split("-") if part != "fe0f")


@dataclass(frozen=True)
class Label:
    """What emojibase says of one emoji; `group` is its number (see its meta/groups.json)."""

    code: str
    name: str
    group: int


@dataclass(frozen=True)
class Artwork:
    """All packages, fetched into `cache`."""

    cache: Path

    @cached_property
    def labels(self) -> dict[str, Label]:
        """Code -> label, of every emoji in a group (components and lone letters have none)."""
        entries = _json(fetch(LABELS, self.cache), "package/en/data.json")
        named = (e for e in entries if "group" in e)
        return {code(e["hexcode"]): _label(e) for e in named}

    @cached_property
    def _codes_by_name(self) -> dict[str, str]:
        """Squeezed icon name -> code, from the packages that give both."""
        table = {squeeze(label.name): key for key, label in self.labels.items()}
        for style in ("openmoji", "twemoji", "noto"):
            chars = _json(fetch(package_of(style), self.cache), "package/chars.json")
            table |= {squeeze(name): code(key) for key, name in chars.items()}
        return table

    def drawings(self, style: str) -> dict[str, str | bytes]:
        """Code -> SVG text or WebP bytes, of every drawing in the style that has a label."""
        package = package_of(style)
        path = fetch(package, self.cache)
        pairs = _webps(path) if package.bitmaps else self._icons(package, path)
        found: dict[str, str | bytes] = {}
        for key, drawing in pairs:
            if key in self.labels:
                found.setdefault(key, drawing)
        return found

    def _icons(self, package: Package, tarball: Path) -> Iterator[tuple[str, str]]:
        names = {name: code(key) for key, name in _json(tarball, "package/chars.json").items()}
        for name, drawing in icons(tarball):
            key = names.get(name) or self._match(name)
            if key and name not in package.other:
                yield key, drawing

    def _match(self, name: str) -> str | None:
        """The code of an icon known by name alone: as it is, without a variant number, without "face"."""
        plain = squeeze(re.sub(r"-\d$", "", name))
        for candidate in (squeeze(name), plain, plain.removesuffix("face"), plain + "face"):
            if candidate in self._codes_by_name:
                return self._codes_by_name[candidate]
        return None


def package_of(style: str) -> Package:
    """The package of a style; KeyError names the styles there are."""
    return {package.style: package for package in STYLES}[style]


def squeeze(name: str) -> str:
    """A name without case, spaces, hyphens and punctuation: how the packages' spellings meet."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def icons(tarball: Path) -> Iterator[tuple[str, str]]:
    """Name and SVG text of every icon of an Iconify package."""
    known = _json(tarball, "package/icons.json")
    width, height = known.get("width", 16), known.get("height", 16)
    for name, icon in known["icons"].items():
        yield name, _svg(icon, width, height)


def _svg(icon: Mapping[str, Any], width: int, height: int) -> str:
    """An Iconify entry as a standalone SVG document."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    box = f"{left} {top} {icon.get('width', width)} {icon.get('height', height)}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{box}">{icon["body"]}</svg>'


def _label(entry: Mapping[str, Any]) -> Label:
    return Label(code(entry["hexcode"]), entry["label"], entry["group"])


def _webps(tarball: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.name.endswith(".webp"):
                stream = archive.extractfile(member)
                assert stream is not None  # a .webp is a file
                yield code(Path(member.name).name), stream.read()


def member(tarball: Path, name: str) -> bytes:
    """A file of a package.

    Raises:
        ArtworkError: it has none of that name.
    """
    with tarfile.open(tarball) as archive:
        stream = archive.extractfile(name) if name in archive.getnames() else None
        if stream is None:
            raise ArtworkError(f"{tarball.name} has no {name}")
        return stream.read()


def _json(tarball: Path, name: str) -> Any:
    return json.loads(member(tarball, name))
