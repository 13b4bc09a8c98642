"""Concept images as they come: judged by content and limits, then reduced to their pixels.

What leaves here is never the user's file: each picture is decoded, turned upright, put on white where it is
transparent, and written anew as an RGB PNG, so nothing but its pixels remains (no EXIF, no GPS position, no
second picture or archive behind it).
"""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from services.errors import InputError, RefusedError, TooLargeError, UnsupportedImageError
from services.settings import Settings

_PARAM = "images"
_FORMATS = ("PNG", "JPEG", "WEBP")
_MIN_SIDE = 32
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises on damaged files. `Warning` is for where warnings are errors.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Warning,
)

# For the whole process: `catch_warnings` is not safe with threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, kw_only=True)
class CheckedImage:
    """A picture fit to learn from.

    Attributes:
        name: base name of the file it came from.
        png: the pixels alone, as an RGB PNG.
        digest: sha256 over size and pixels.
        notes: what the user should know, for example a duplicate that was left out.
    """

    name: str
    png: bytes = field(repr=False)
    digest: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def check_images(files: Sequence[tuple[str, bytes]], settings: Settings) -> list[CheckedImage]:
    """Check pictures given as (name, bytes) and keep their pixels only; equal pictures are kept once.

    Raises:
        InputError: there are none, or one is smaller than 32 pixels on a side.
        TooLargeError: too many files, bytes or pixels, decided before anything is decoded.
        UnsupportedImageError: not a PNG, JPEG or WebP by content; or animated, damaged or empty.
    """
    if not files:
        raise InputError("There are no images: give at least one PNG, JPEG or WebP.", param=_PARAM)
    if len(files) > settings.max_images:
        raise too_many(settings)
    kept: dict[str, CheckedImage] = {}
    for path, data in files:
        image = _check_image(base_name(path), data, settings)
        first = kept.setdefault(image.digest, image)
        if first is not image:
            note = f"{image.name!r} shows the same pixels as {first.name!r} and was left out."
            kept[image.digest] = replace(first, notes=(*first.notes, note))
    return list(kept.values())


def _check_image(name: str, data: bytes, settings: Settings) -> CheckedImage:
    if not data:
        raise UnsupportedImageError(f"{name!r} is empty (0 bytes): give the picture itself.", param=_PARAM)
    if len(data) > settings.max_image_bytes:
        raise too_many_bytes(name, settings)
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as header:
            _check_header(name, header, settings)
            header.verify()  # a PNG's checksums
        with Image.open(BytesIO(data), formats=_FORMATS) as picture:
            image = _pixels(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name, settings) from None
    except UnidentifiedImageError:
        raise unsupported(name) from None
    except _DAMAGE as error:
        raise UnsupportedImageError(
            f"{name!r} is damaged or cut off: open it in an image viewer, save it again and retry.",
            param=_PARAM,
        ) from error
    return CheckedImage(name=name, png=_png(image), digest=digest(image), width=image.width, height=image.height)


def _check_header(name: str, header: Image.Image, settings: Settings) -> None:
    """Judge a picture that is open but not decoded."""
    width, height = header.size
    # A camera's JPEG may carry further pictures (MPO): its first one is the photo.
    if header.format in {"PNG", "WEBP"} and getattr(header, "is_animated", False):
        raise UnsupportedImageError(f"{name!r} is animated: save one frame of it.", param=_PARAM)
    if width * height > settings.max_image_pixels:
        raise _too_many_pixels(name, settings)
    if min(width, height) < _MIN_SIDE:
        raise InputError(
            f"{name!r} is {width}x{height} pixels: each side must have at least {_MIN_SIDE}.", param=_PARAM
        )


def _pixels(picture: Image.Image) -> Image.Image:
    """Decode, turn upright and put on white: an RGB image without any metadata."""
    picture.load()
    turn = _UPRIGHT.get(_orientation(picture))
    if picture.mode.startswith("I"):  # 16-bit grey
        grey = picture.convert("I").point(lambda value: value / 256)
        rgb = grey.convert("L").convert("RGB")
    elif picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        rgb = picture.convert("RGB")
    upright = rgb if turn is None else rgb.transpose(turn)  # a flip is number 0
    return Image.frombytes("RGB", upright.size, upright.tobytes())


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return 1  # broken metadata does not make a broken picture


def digest(image: Image.Image) -> str:
    """Digest of a picture: sha256 over its size and its RGB pixels."""
    size = f"{image.width}x{image.height}\n".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()


def digest_of_all(digests: Sequence[str]) -> str:
    """Digest of a set of pictures, whatever their order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, format="PNG", compress_level=1)  # held for hours: quick matters more than small
    return out.getvalue()


def base_name(path: str) -> str:
    """The printable end of a path or name that somebody else chose."""
    name = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(c for c in name if c.isprintable())[-80:] or "image"


def too_many(settings: Settings) -> TooLargeError:
    """The error for more than `max_images`."""
    return TooLargeError(f"There are more than {settings.max_images} images: give fewer.", param=_PARAM)


def too_many_bytes(name: str, settings: Settings) -> TooLargeError:
    """The error for more than `max_image_bytes`."""
    return TooLargeError(f"{name!r} is larger than {settings.max_image_bytes} bytes: save it smaller.", param=_PARAM)


def _too_many_pixels(name: str, settings: Settings) -> TooLargeError:
    return TooLargeError(f"{name!r} has more than {settings.max_image_pixels} pixels: scale it down.", param=_PARAM)


def unsupported(name: str) -> UnsupportedImageError:
    """The error for what is no picture that we read."""
    return UnsupportedImageError(f"{name!r} is not a PNG, JPEG or WebP picture.", param=_PARAM)


def looks_like_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG or WebP."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (data[:4], data[8:12]) == (
        b"RIFF",
        b"WEBP",
    )


def reopen(png: bytes) -> Image.Image:
    """Decode the `png` of a CheckedImage.

    Raises:
        RefusedError: it is not one of ours any more.
    """
    try:
        with Image.open(BytesIO(png), formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except (Image.DecompressionBombError, *_DAMAGE):
        raise RefusedError("A held image is damaged: submit the images again.", param=_PARAM) from None
