"""Pictures to submit, and the settings they are checked by."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from services.images import CheckedImage, check_images
from services.settings import Settings

SETTINGS = Settings(max_images=5, max_image_bytes=200_000, max_image_pixels=250_000, intake_ttl_days=7)


def picture(seed: int = 0, *, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
    """Noise, so that every pixel counts."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def check_one(data: bytes, name: str = "a.png") -> CheckedImage:
    (checked,) = check_images([(name, data)], SETTINGS)
    return checked


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
