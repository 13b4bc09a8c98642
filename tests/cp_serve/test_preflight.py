"""What preflight says of real pictures: the bundled samples, and what was done to them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from cp_serve.preflight import preflight
from services.images import CheckedImage, check_images
from services.settings import Settings

SAMPLES = sorted((Path(__file__).parents[2] / "infra" / "samples").glob("*/*.png"))
SIDE = 64


def png(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def checked(*pictures: Image.Image) -> list[CheckedImage]:
    return check_images([(f"{number}.png", png(picture)) for number, picture in enumerate(pictures)], Settings())


def sample(number: int = 0) -> Image.Image:
    return Image.open(SAMPLES[number]).convert("RGB")


def kinds(images: Sequence[CheckedImage], kind: str) -> list[list[str]]:
    return [finding.images for finding in preflight(images, SIDE) if finding.kind == kind]


def test_nothing_is_found_in_good_pictures() -> None:
    for folder in {path.parent for path in SAMPLES}:
        files = [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.png"))]
        assert preflight(check_images(files, Settings()), SIDE) == [], folder.name


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_blurred_picture_is_named(number: int) -> None:
    sharp = sample(number)
    blurred = sharp.filter(ImageFilter.GaussianBlur(sharp.width / 12))
    assert kinds(checked(sharp), "blurred") == []
    assert kinds(checked(blurred), "blurred") == [["0.png"]]


def test_the_same_picture_is_named_however_little_was_changed() -> None:
    original = sample()
    smaller = original.resize((original.width * 3 // 4, original.height * 3 // 4))
    found = preflight(checked(original, original.copy(), smaller), SIDE)
    assert [finding.images for finding in found if finding.kind == "duplicate"] == [["0.png"]]
    assert [finding.images for finding in found if finding.kind == "near_duplicate"] == [["0.png", "2.png"]]
    assert all("\n" not in finding.message for finding in found)


def test_few_small_and_many() -> None:
    tiny = sample().resize((SIDE - 1, SIDE + 20))
    assert kinds(checked(tiny), "too_small") == [["0.png"]]
    assert kinds(checked(tiny), "too_few") == [[]]
    grey = [Image.new("L", (SIDE, SIDE), shade) for shade in range(31)]
    assert kinds(checked(*grey), "too_many") == [[]]
    assert kinds(checked(*grey), "blurred") == [], "one flat colour is no blurred picture"
