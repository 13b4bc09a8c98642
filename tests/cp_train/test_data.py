"""Pictures on their way into latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cp_train.data import MIN_CROP, cached_latents, random_crop, to_pixels
from services.base_model import BaseModel

SAMPLES = sorted((Path(__file__).parents[2] / "infra" / "samples").glob("*/*.png"))[:2]


def gradient(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def test_pixels_go_from_minus_one_to_one() -> None:
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    found = to_pixels([black, white], 4)
    assert found.shape == (2, 3, 4, 4)
    assert found.dtype == torch.float32
    assert (found[0] == -1).all()
    assert (found[1] == 1).all()


def test_channels_rows_and_columns_are_not_mixed_up() -> None:
    found = to_pixels([gradient(64, 64)], 64)[0]
    assert found[0, 10, 60] > 0.8
    assert found[0, 60, 3] < -0.8
    assert found[1, 60, 3] > 0.8
    assert (found[2] == -1).all()


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_what_is_not_square_is_cut_around_its_centre(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height))
    image.paste("white", (width // 2 - 15, height // 2 - 15, width // 2 + 15, height // 2 + 15))
    assert to_pixels([image], 30).min() > 0.99


def test_grey_and_transparent_pictures_become_rgb() -> None:
    assert to_pixels([Image.new("L", (9, 9), 255), Image.new("RGBA", (9, 9), "white")], 3).min() == 1


def test_crops_are_squares_inside_the_picture_and_the_same_for_the_same_seed() -> None:
    image = gradient(120, 80)
    draws = [[random_crop(image, g) for _ in range(20)] for g in (torch.Generator().manual_seed(1) for _ in range(2))]
    for crop in draws[0]:
        assert crop.width == crop.height
        assert int(80 * MIN_CROP) <= crop.width <= 80
        assert np.asarray(crop)[..., 0].max() > 0
    assert [crop.tobytes() for crop in draws[0]] == [crop.tobytes() for crop in draws[1]]
    assert len({crop.tobytes() for crop in draws[0]}) == 20


def test_the_smallest_picture_can_be_cropped() -> None:
    assert random_crop(Image.new("RGB", (1, 1)), torch.Generator()).size == (1, 1)


def test_latents_are_the_pictures_first_and_then_their_crops(tiny_base: BaseModel) -> None:
    images = [Image.open(path).convert("RGB") for path in SAMPLES]
    found = cached_latents(tiny_base, images, crops=5, seed=3)
    assert found.shape == (12, 4, 8, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:2], tiny_base.encode_images(to_pixels(images, 16)))
    assert torch.equal(found, cached_latents(tiny_base, images, crops=5, seed=3))
    assert not torch.equal(found[2:], cached_latents(tiny_base, images, crops=5, seed=4)[2:])
    assert len({tuple(row.flatten().tolist()) for row in found}) == 12
