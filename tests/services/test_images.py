"""Checked images: what is accepted, what becomes of it, and what is not."""

import struct
import zipfile
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from services.errors import InputError, TooLargeError, UnsupportedImageError
from services.images import CheckedImage, check_images
from services.settings import Settings
from tests.services.pictures import SETTINGS, check_one, encode, picture, png_of


def pixels(checked: CheckedImage) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(checked.png)))


# --- what is accepted ---


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95}), ("MPO", {})]
)
def test_formats_are_told_by_content(kind: str, options: dict[str, object]) -> None:
    data = encode(picture(), kind, **options)
    checked = check_one(data, "/home/somebody/secret/holiday.txt")
    assert checked.name == "holiday.txt"
    assert (checked.width, checked.height) == (48, 40)
    with Image.open(BytesIO(data)) as original:
        assert np.array_equal(pixels(checked), np.asarray(original))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = picture(mode=mode)
    checked = check_one(
        encode(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 100} if mode == "CMYK" else {}))
    )
    assert pixels(checked).shape == (40, 48, 3)
    assert abs(pixels(checked).astype(int) - np.asarray(image.convert("RGB"))).mean() < 3


def test_sixteen_bits_become_eight() -> None:
    grey = (np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16).astype(np.uint16)
    checked = check_one(encode(Image.fromarray(grey)))
    assert np.array_equal(pixels(checked), np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_transparency_is_put_on_white() -> None:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 128), (0, 0, 20, 40))
    out = pixels(check_one(encode(image)))
    assert out[0, 39].tolist() == [255, 255, 255]
    assert abs(out[0, 0].astype(int) - [127, 127, 255]).max() <= 1
    palette = picture().quantize(4)
    half = check_one(encode(palette, transparency=bytes([0, 255, 255, 255])))
    assert (pixels(half)[np.asarray(palette) == 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright_and_forget_where_they_were_taken(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)  # GPS latitude
    options: dict[str, object] = {"exif": exif, **({"lossless": True} if kind == "WEBP" else {})}
    data = encode(picture(), kind, **options)
    assert b"SecretCamera" in data
    checked = check_one(data)
    with Image.open(BytesIO(data)) as original:
        assert np.array_equal(pixels(checked), np.asarray(ImageOps.exif_transpose(original).convert("RGB")))
    assert _chunks(checked.png) <= {b"IHDR", b"IDAT", b"IEND"}


def _chunks(png: bytes) -> set[bytes]:
    found, at = set(), 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        found.add(kind)
        at += 12 + length
    return found


def test_text_profiles_and_archives_do_not_pass() -> None:
    info = PngInfo()
    info.add_text("Comment", "my secret", zip=False)
    data = encode(picture(), pnginfo=info, icc_profile=b"a profile")
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../evil", "payload")
    checked = check_one(data + archive.getvalue())
    assert _chunks(checked.png) <= {b"IHDR", b"IDAT", b"IEND"}
    assert not zipfile.is_zipfile(BytesIO(checked.png))
    assert b"my secret" not in checked.png


def test_broken_metadata_does_not_make_a_broken_picture() -> None:
    clean = check_one(encode(picture(), "WEBP", lossless=True))
    assert check_one(encode(picture(), "WEBP", lossless=True, exif=b"Exif\0\0rubbish")).digest == clean.digest


def test_equal_pictures_are_kept_once_and_said() -> None:
    png, webp = encode(picture()), encode(picture(), "WEBP", lossless=True)
    kept = check_images([("a.png", png), ("b.webp", webp), ("c.png", encode(picture(1))), ("d.png", png)], SETTINGS)
    assert [image.name for image in kept] == ["a.png", "c.png"]
    assert ["'b.webp'" in kept[0].notes[0], "'d.png'" in kept[0].notes[1]] == [True, True]
    assert kept[1].notes == ()


def test_contents_do_not_show_in_a_repr() -> None:
    assert "png" not in repr(check_one(encode(picture()), "a"))


# --- what is not ---


def test_no_images_and_too_many() -> None:
    with pytest.raises(InputError, match="at least one") as caught:
        check_images([], SETTINGS)
    assert caught.value.param == "images"
    with pytest.raises(TooLargeError, match="more than 5 images"):
        check_images([("a", b"not even looked at")] * 6, SETTINGS)


def test_bytes_are_limited() -> None:
    with pytest.raises(TooLargeError, match=r"'big\.png' is larger than 200000 bytes"):
        check_one(bytes(200_001), "/private/big.png")


@pytest.mark.parametrize("size", [(31, 500), (500, 31), (1, 1)])
def test_small_pictures_are_refused_with_their_size(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels") as caught:
        check_one(encode(picture(size=size)))
    assert caught.value.status == 422


@pytest.mark.parametrize("size", [(501, 500), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(TooLargeError, match="more than 250000 pixels"):
        check_one(png_of(*size))  # there are no pixels in it: nothing was decoded


def test_a_real_bomb_of_each_format() -> None:
    grey = Image.new("L", (5100, 5100))
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 1}), ("WEBP", {"quality": 0, "method": 0})):
        data = encode(grey, kind, **options)
        with pytest.raises(TooLargeError, match="pixels"):
            check_images([("bomb", data)], Settings(max_image_bytes=2**24))


def test_a_text_bomb_is_refused() -> None:
    body = b"Comment\0\0" + zlib.compress(bytes(2**27))
    text = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    png = encode(picture())
    with pytest.raises(UnsupportedImageError, match="damaged"):
        check_one(png[:33] + text + png[33:])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedImageError, match="not a PNG, JPEG or WebP"):
        check_one(encode(picture(size=(64, 64)), kind))


@pytest.mark.parametrize(
    "data", [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\3\4", b"%!PS-Adobe", bytes(99)]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match=r"'x\.jpg' is not a PNG"):
        check_one(data, "C:\\Users\\somebody\\x.jpg")


def test_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="0 bytes"):
        check_one(b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedImageError, match="animated"):
        check_one(encode(picture(), kind, save_all=True, append_images=[picture(1)]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
def test_cut_off_files_are_refused(kind: str, part: float) -> None:
    data = encode(picture(), kind)
    with pytest.raises(UnsupportedImageError):
        check_one(data[: int(len(data) * part)])


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encode(picture()))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnsupportedImageError, match="damaged"):
        check_one(bytes(data))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_no_rubbish_breaks_through(kind: str, options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = np.frombuffer(encode(picture(), kind, exif=exif, **options), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(150):
        rubbish = data.copy()
        where = rng.integers(0, rng.choice([64, 400, len(data)]), 4) % len(data)
        rubbish[where] = rng.integers(0, 256, 4)
        try:
            check_one(rubbish.tobytes())
        except InputError as error:
            assert error.param == "images"  # noqa: PT017
