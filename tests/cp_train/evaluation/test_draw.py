"""Fixed-seed pictures are those of a plain diffusers pipeline with the same seeds."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from cp_train.evaluation import draw
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition
from tests.bases import reference, some_adapter

PROMPTS = ["a photo of a <mug>", "a <mug> and a fox"]
SEEDS = [0, 3]


@pytest.fixture
def adapter(any_base: BaseModel) -> Adapter:
    return some_adapter(any_base.layout, {"mug": 2})


def test_pictures_are_those_of_a_plain_pipeline(any_base: BaseModel, adapter: Adapter) -> None:
    ours = draw.draw(any_base, adapter, PROMPTS, SEEDS)
    assert ours.shape == (2, 2, 16, 16, 3)
    assert ours.dtype == torch.uint8
    plain = reference(any_base, adapter)
    for row, prompt in zip(ours.numpy(), PROMPTS, strict=True):
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        options = {"num_inference_steps": draw.STEPS, "guidance_scale": draw.GUIDANCE, "output_type": "np"}
        theirs = plain([prompt] * 2, generator=generators, **options).images
        assert np.abs(row - theirs * 255).max() <= 2
        assert np.abs(theirs[0] - theirs[1]).max() > 0.1


def test_pictures_do_not_depend_on_how_many_are_drawn_at_once(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = some_adapter(tiny_base.layout, {"mug": 2})
    monkeypatch.setattr(draw, "STEPS", 3)
    whole = draw.draw(tiny_base, adapter, PROMPTS, SEEDS)
    monkeypatch.setattr(draw, "ROWS_AT_ONCE", 3)
    apart = draw.draw(tiny_base, adapter, PROMPTS, SEEDS)
    assert (whole.int() - apart.int()).abs().max() <= 1


def test_in_bfloat16_pictures_are_nearly_the_same_and_again_the_same(any_base: BaseModel, adapter: Adapter) -> None:
    kv = condition(any_base, [*PROMPTS, ""], adapter)
    exact, brief, again = (
        draw.draw_conditioned(any_base, kv, SEEDS, steps=3, precision=precision)
        for precision in ("float32", "bfloat16", "bfloat16")
    )
    assert torch.equal(brief, again)
    assert not torch.equal(brief, exact)
    assert (brief.float() - exact.float()).abs().mean() < 0.02 * 255


def test_the_grid_has_a_row_for_each_prompt_and_a_column_for_each_seed() -> None:
    pictures = torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8)
    pictures[1, 2] = 255
    with Image.open(BytesIO(draw.grid(pictures))) as image:
        assert (image.format, image.size) == ("PNG", (15, 8))
        shown = np.asarray(image)
    assert shown[4:, 10:].min() == 255
    assert shown.sum() == 4 * 5 * 3 * 255
