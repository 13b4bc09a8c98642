"""The U-Net as serving runs it is the same function as the base's own."""

import copy
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from cp_serve.engine import Engine
from cp_serve.twins import Once
from cp_serve.unet import Compile, buckets_of, plain_unet, prepare_unet
from cp_serve.upsample import PhasedUpsample, phase_upsamplers
from services.base_model import BaseModel, load_base
from tests.bases import KINDS
from tests.cp_serve.drawings import NEAR, PATIENCE, Wish, alone, distance, draw, learned_like, random_wishes
from tests.layouts import save


def inputs(base: BaseModel, rows: int, twins: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    """A batch whose first rows are twins, as `Batch` makes it."""
    side, generator = int(base.unet.config.sample_size), torch.Generator().manual_seed(rows)
    x_RCHW = torch.randn(rows, base.latent_channels, side, side, generator=generator)
    kv_RLK = torch.randn(rows, base.tokenizer.model_max_length, base.packed_width, generator=generator)
    t_R = torch.linspace(1, 999, rows)
    for part in (x_RCHW, t_R):
        part[:twins] = part[twins : 2 * twins].flip(0)
    return x_RCHW, t_R, kv_RLK, twins


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
    torch.set_num_threads(2)
    run = prepare_unet(prepared)
    assert sum(isinstance(module, PhasedUpsample) for module in prepared.unet.modules()) == upsamplers > 0
    assert phase_upsamplers(prepared.unet) == 0, "again, nothing happens"
    for rows, guided in ((1, 0), (5, 0), (2, 1), (5, 2), (9, 0), (13, 5)):
        given = inputs(plain, rows, guided)
        torch.testing.assert_close(run(*given), plain_unet(plain)(*given), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_what_sees_no_text_runs_once_for_twins(tiny_folders: Mapping[str, Path], kind: str) -> None:
    base, seen = load_base(str(tiny_folders[kind]), device="cpu"), []
    run = prepare_unet(base)
    once = [module.layer for module in base.unet.modules() if isinstance(module, Once)]
    assert len(once) >= 2
    for layer in once:
        layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    run(*inputs(base, 5, 2))
    assert set(seen) == {3}
    base.unet(*inputs(base, 5)[:2], encoder_hidden_states=inputs(base, 5)[2])
    assert seen.count(5) == len(once), "whoever else runs the network has all rows of his own"


@torch.inference_mode()
def test_twins_of_one_thread_are_not_those_of_another(tiny_folders: Mapping[str, Path]) -> None:
    base = load_base(str(tiny_folders["v_prediction"]), device="cpu")
    run, given = prepare_unet(base), inputs(base, 3)
    expected = run(*given)
    within, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            within.set()
            assert go_on.wait(PATIENCE)

    hook = base.unet.mid_block.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(torch.inference_mode()(run), *inputs(base, 4, 2))
        try:
            assert within.wait(PATIENCE)
            assert torch.equal(run(*given), expected)
        finally:
            go_on.set()
        assert other.result().shape[0] == 4
    hook.remove()


def test_an_xl_base_adds_text_to_the_time_and_shares_nothing(tmp_path: Path) -> None:
    save("sdxl", "epsilon", tmp_path)
    base = load_base(str(tmp_path), device="cpu")
    prepare_unet(base)
    assert not [module for module in base.unet.modules() if isinstance(module, Once)]


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


def test_any_mix_is_drawn_as_each_is_alone(any_base: BaseModel) -> None:
    """With all that serving does to the network on the CPU: rows split among threads, twins, upsampling in phases."""
    adapters = [None, *(learned_like(any_base, number) for number in range(3))]
    wishes = random_wishes(adapters, 12, seed=7)
    base = copy.deepcopy(any_base)
    torch.set_num_threads(2)
    unet = prepare_unet(base)
    torch.set_num_threads(1)
    seen: set[int] = set()
    base.unet.register_forward_pre_hook(lambda *_: seen.add(threading.get_ident()))
    engine = Engine(base, max_batch=8, max_queue=8, unet=unet)
    try:
        together = draw(engine, *(wish.drawing(base) for wish in wishes))
    finally:
        engine.stop()
    assert len(seen) == 3, "the denoiser's own thread, and two for large batches"
    for wish, picture in zip(wishes, together, strict=True):
        assert distance(picture, alone(any_base, wish)) <= NEAR, wish


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_on_cuda_it_is_channels_last_whole_and_compiled_if_asked(
    tiny_base: BaseModel, mode: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as a CPU goes: what is run is checked, and that it is the same function."""
    compiled: list[dict[str, object]] = []

    def compile_(network: object, **how: object) -> object:
        compiled.append(how)
        return network

    base, given = copy.deepcopy(tiny_base), inputs(tiny_base, 9, 2)
    expected = plain_unet(tiny_base)(*given)
    monkeypatch.setattr(torch, "compile", compile_)
    torch.set_num_threads(2)
    with monkeypatch.context() as pretended:
        pretended.setattr(BaseModel, "device", torch.device("cuda"))
        run = prepare_unet(base, compile_mode=mode)
    assert base.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not [module for module in base.unet.modules() if isinstance(module, Once | PhasedUpsample)]
    assert compiled == ([] if mode == "none" else [{"mode": mode, "dynamic": False}])
    torch.testing.assert_close(run(*given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("avx512", [True, False])
def test_on_the_cpu_it_is_channels_last_where_that_pays_and_the_same_function(
    tiny_base: BaseModel, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, given = copy.deepcopy(tiny_base), inputs(tiny_base, 9, 2)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": avx512})
    run = prepare_unet(base)
    convolutions = [module for module in base.unet.modules() if isinstance(module, torch.nn.Conv2d)]
    last = [c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions if c.kernel_size != (1, 1)]
    assert set(last) == {not avx512}
    with torch.inference_mode():
        torch.testing.assert_close(run(*given), plain_unet(tiny_base)(*given), rtol=1e-4, atol=1e-5)


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
