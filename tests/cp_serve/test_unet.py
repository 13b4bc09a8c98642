"""The U-Net as serving runs it is the same function as the base's own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from cp_serve.engine import Engine
from cp_serve.unet import buckets_of, plain_unet, prepare_unet
from cp_serve.upsample import PhasedUpsample, phase_upsamplers
from services.base_model import BaseModel, load_base
from tests.bases import KINDS
from tests.cp_serve.drawings import NEAR, Wish, alone, distance, draw, random_wishes


def inputs(base: BaseModel, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    side = int(base.unet.config.sample_size)
    x_RCHW = torch.randn(rows, base.latent_channels, side, side, generator=torch.Generator().manual_seed(rows))
    kv_RLK = torch.randn(rows, base.tokenizer.model_max_length, base.packed_width)
    return x_RCHW, torch.linspace(1, 999, rows), kv_RLK


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 8, 4, 4), (3, 5, 1, 7), (1, 16, 8, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_upsampling_in_phases_is_upsampling(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(shape[1])
    theirs = Upsample2D(shape[1], use_conv=True, out_channels=shape[1] + 2, bias=bias)
    x_BCHW = torch.randn(shape)
    found = PhasedUpsample(theirs.conv)(x_BCHW)
    assert found.shape == (shape[0], shape[1] + 2, 2 * shape[2], 2 * shape[3])
    torch.testing.assert_close(found, theirs(x_BCHW), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_unet_is_the_same_function(tiny_folders: Mapping[str, Path], kind: str) -> None:
    plain, prepared = (load_base(str(tiny_folders[kind]), device="cpu") for _ in range(2))
    upsamplers = sum(isinstance(module, Upsample2D) for module in plain.unet.modules())
    run = prepare_unet(prepared)
    assert sum(isinstance(module, PhasedUpsample) for module in prepared.unet.modules()) == upsamplers > 0
    assert phase_upsamplers(prepared.unet) == 0, "again, nothing happens"
    for rows in (1, 5):
        given = inputs(plain, rows)
        torch.testing.assert_close(run(*given), plain_unet(plain)(*given), rtol=1e-4, atol=1e-5)


def test_what_does_not_double_is_left_alone(own_folder: Path) -> None:
    base = load_base(str(own_folder), device="cpu")
    base.unet.register_to_config(sample_size=7)
    assert phase_upsamplers(base.unet) == 0
    base.unet.register_to_config(sample_size=8)
    upsampler = next(module for module in base.unet.modules() if isinstance(module, Upsample2D))
    upsampler.conv.stride = (2, 2)
    assert phase_upsamplers(base.unet) == 0


def test_prepared_it_draws_the_same_pictures(embedded_base: BaseModel) -> None:
    base = load_base(device="cpu")
    wishes = [replace(wish, steps=wish.steps + 3) for wish in random_wishes([None], 4, seed=1)]
    engine = Engine(base, max_batch=4, max_queue=4, unet=prepare_unet(base))
    try:
        together = draw(engine, *(wish.drawing(base) for wish in wishes))
        again = draw(engine, wishes[0].drawing(base))[0]
        assert torch.equal(draw(engine, wishes[0].drawing(base))[0], again), "alone, to the last bit"
    finally:
        engine.stop()
    for wish, picture in zip(wishes, together, strict=True):
        assert distance(picture, alone(embedded_base, wish)) <= NEAR, wish


def test_in_bfloat16_it_draws_nearly_the_same(tiny_folders: Mapping[str, Path], tiny_base: BaseModel) -> None:
    base = load_base(str(tiny_folders["epsilon"]), device="cpu")
    unet = prepare_unet(base, precision="bfloat16")
    assert base.unet.dtype == torch.bfloat16
    engine = Engine(base, max_batch=4, max_queue=4, unet=unet, buckets=buckets_of(4, "reduce-overhead"))
    wish = Wish(steps=4, seed=3)
    try:
        engine.warm_up()
        pictures = draw(engine, *(replace(wish, seed=seed).drawing(base) for seed in range(3, 6)))
    finally:
        engine.stop()
    assert 0 < distance(pictures[0], alone(tiny_base, wish)) <= 16


def test_the_compiler_sees_one_whole_graph(tiny_folders: Mapping[str, Path]) -> None:
    """What makes C++ or CUDA graphs of it is torch's business; a break in the graph would be ours."""
    base = load_base(str(tiny_folders["epsilon"]), device="cpu")
    traced, given = torch.compile(base.unet, backend="eager", fullgraph=True, dynamic=False), inputs(base, 2)
    with torch.inference_mode():
        found = traced(given[0], given[1], encoder_hidden_states=given[2], return_dict=False)[0]
        torch.testing.assert_close(found, plain_unet(base)(*given), rtol=1e-5, atol=1e-5)
