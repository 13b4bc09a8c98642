"""The engine on real base models: whatever shares the batch, a picture is its owner's, and places are freed at once."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cp_serve.engine import Places
from cp_serve.samplers import SAMPLERS, scheduler_of
from cp_serve.unet import prepare_unet
from services.base_model import BaseModel, load_base
from services.errors import BusyError, RefusedError, UnavailableError
from tests.bases import reference
from tests.cp_serve.drawings import (
    NEAR,
    PATIENCE,
    Gate,
    Wish,
    alone,
    distance,
    draw,
    engine_of,
    learned_like,
    random_wishes,
)
from tests.house import wait_until
from tests.layouts import save


def plain(base: BaseModel, wish: Wish) -> Tensor:
    """The picture of a plain diffusers pipeline with the adapter's LoRA file loaded and its tokens added."""
    pipeline = reference(base, wish.adapter)
    config = dict(pipeline.scheduler.config) | {"clip_sample": False}  # which XL's pipelines leave at DDIM's default
    pipeline.scheduler = scheduler_of(replace(base, scheduler_config=config), wish.sampler)
    picture = pipeline(
        wish.prompt,
        negative_prompt=wish.negative,
        num_inference_steps=wish.steps,
        guidance_scale=wish.guidance,
        generator=torch.Generator().manual_seed(wish.seed),
        output_type="np",
    ).images[0]
    return torch.from_numpy((picture * 255).round().astype(np.uint8))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_alone_a_picture_is_the_same_to_the_last_bit(embedded_base: BaseModel, guidance: float) -> None:
    wish = Wish(adapter=learned_like(embedded_base, 1), prompt="a <fox>", guidance=guidance)
    first = alone(embedded_base, wish)
    assert first.shape == (64, 64, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(alone(embedded_base, wish), first)
    assert not torch.equal(alone(embedded_base, replace(wish, seed=1)), first)


def test_in_company_that_comes_and_goes_it_is_the_same_picture(embedded_base: BaseModel) -> None:
    adapters = [None, learned_like(embedded_base, 1), learned_like(embedded_base, 2)]
    wishes = [replace(wish, steps=wish.steps + 2) for wish in random_wishes(adapters, 5, seed=3)]
    drawings = [wish.drawing(embedded_base) for wish in wishes]
    with engine_of(embedded_base, max_batch=4) as engine, Gate(embedded_base) as gate:
        for number, drawing in enumerate(drawings):
            engine.submit([drawing])
            if number % 2:  # the next ones find a batch on its way
                gate.arrived()
                gate.let()
        gate.open()
        together = [drawing.picture.result(PATIENCE) for drawing in drawings]
    for wish, picture in zip(wishes, together, strict=True):
        assert distance(picture, alone(embedded_base, wish)) <= NEAR, wish


@pytest.mark.parametrize("max_batch", [3, 16])
def test_any_mix_on_any_base(any_base: BaseModel, max_batch: int) -> None:
    adapters = [None, *(learned_like(any_base, number) for number in range(3))]
    wishes = random_wishes(adapters, 10, seed=max_batch)
    with engine_of(any_base, max_batch=max_batch) as engine:
        together = draw(engine, *(wish.drawing(any_base) for wish in wishes))
        for wish, picture in zip(wishes, together, strict=True):
            assert distance(picture, draw(engine, wish.drawing(any_base))[0]) <= NEAR, wish


WISHES = [
    Wish(prompt="a fox", negative="a robot", steps=8, seed=7),
    Wish(prompt="a fox", negative="a robot", steps=8, seed=7, sampler="dpmpp_2m"),
    Wish(prompt="a fox", negative="a robot", steps=16, seed=7, sampler="dpmpp_2m"),
    Wish(prompt="a fox", negative="a robot", steps=8, seed=7, sampler="euler"),
    Wish(prompt="a red robot", steps=7, guidance=1.0, seed=8),
    Wish(prompt="a red robot", negative="a fox", steps=5, guidance=0.5, seed=8),
]


@pytest.mark.parametrize("wish", WISHES)
def test_the_base_draws_what_plain_diffusers_draws(embedded_base: BaseModel, wish: Wish) -> None:
    assert distance(alone(embedded_base, wish), plain(embedded_base, wish)) <= NEAR


@pytest.mark.parametrize("seed", [1, 2])
def test_any_mix_as_it_is_served_is_what_plain_diffusers_draws(embedded_base: BaseModel, seed: int) -> None:
    adapters = [None, learned_like(embedded_base, 1), learned_like(embedded_base, 2)]
    wishes = random_wishes(adapters, 6, seed=seed)
    with engine_of(embedded_base, max_batch=4, unet=prepare_unet(embedded_base)) as engine:
        together = draw(engine, *(wish.drawing(embedded_base) for wish in wishes))
    for wish, picture in zip(wishes, together, strict=True):
        assert distance(picture, plain(embedded_base, wish)) <= NEAR, wish


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_adapter_draws_what_plain_diffusers_draws(embedded_base: BaseModel, sampler: str, guidance: float) -> None:
    adapter = learned_like(embedded_base, 5)
    asked = Wish(prompt="a photo of a <fox> on grass", negative="dark", adapter=adapter, steps=6, sampler=sampler)
    wish = replace(asked, guidance=guidance)
    picture = alone(embedded_base, wish)
    assert distance(picture, plain(embedded_base, wish)) <= NEAR
    assert distance(picture, alone(embedded_base, replace(wish, adapter=learned_like(embedded_base, 6)))) > 20


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_xl_base_draws_what_plain_diffusers_draws(tmp_path: Path, prediction_type: str, sampler: str) -> None:
    save("sdxl", prediction_type, tmp_path)
    base = load_base(str(tmp_path), device="cpu")
    wish = Wish(prompt="two <fox>", negative="dark", adapter=learned_like(base, 5), steps=6, seed=3, sampler=sampler)
    picture = alone(base, wish)
    assert distance(picture, plain(base, wish)) <= NEAR
    assert distance(picture, alone(base, replace(wish, prompt="a <robot>"))) > 0


def test_a_cancelled_drawing_frees_its_place_within_one_step(tiny_base: BaseModel) -> None:
    long, queued, short = (Wish(steps=steps).drawing(tiny_base) for steps in (100, 100, 1))
    with Gate(tiny_base) as gate, engine_of(tiny_base, max_batch=1) as engine:
        engine.submit([long, queued, short])
        gate.arrived()
        assert long.picture.cancel()
        assert queued.picture.cancel()
        gate.let()  # the step that was on its way
        gate.arrived()
        gate.let()
        assert short.picture.result(PATIENCE).shape == (16, 16, 3)
        assert engine.steps_done == 2


def test_cancelling_at_any_moment_harms_nobody(tiny_base: BaseModel) -> None:
    wish = Wish(steps=3)
    expected = alone(tiny_base, wish)
    with engine_of(tiny_base, max_batch=4) as engine:
        for round_ in range(20):
            leaving, staying = wish.drawing(tiny_base), wish.drawing(tiny_base)
            engine.submit([leaving, staying])
            time.sleep(round_ / 3000)  # another moment each time
            left = leaving.picture.cancel()
            assert distance(staying.picture.result(PATIENCE), expected) <= NEAR
            assert left or leaving.picture.result().shape == expected.shape
        assert engine.alive


def test_a_full_queue_refuses_at_once_and_takes_nothing(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base, max_batch=2, max_queue=3) as engine:
        with engine.places(Places(4, steps=5)):
            assert engine.load == 4
            with pytest.raises(BusyError, match="4 images") as refused, engine.places(Places(2, steps=5)):
                pass
            assert refused.value.retry_after
            assert engine.load == 4
            with engine.places(Places(1, steps=5)):
                assert engine.load == 5
        assert engine.load == 0


def test_places_are_given_back_whatever_happens(tiny_base: BaseModel) -> None:
    def give_up() -> None:
        with engine.places(Places(1, steps=5)):
            raise LookupError

    with engine_of(tiny_base) as engine:
        with pytest.raises(LookupError):
            give_up()
        assert engine.load == 0


def test_stopping_finishes_what_was_taken(tiny_base: BaseModel) -> None:
    drawings = [Wish(steps=5, seed=seed).drawing(tiny_base) for seed in range(5)]
    with engine_of(tiny_base, max_batch=2) as engine:
        engine.submit(drawings)
        engine.stop()
        assert all(drawing.picture.done() for drawing in drawings)
        assert all(drawing.picture.result().any() for drawing in drawings)
        assert not engine.alive
        with pytest.raises(UnavailableError, match="shutting down"):
            engine.submit([Wish().drawing(tiny_base)])
        with pytest.raises(UnavailableError, match="shutting down"), engine.places(Places(1, steps=1)):
            pass


def test_a_step_that_fails_fails_its_batch_and_the_engine_goes_on(tiny_base: BaseModel) -> None:
    def fail(*_: object) -> None:
        handle.remove()
        raise MemoryError

    drawings = [Wish(seed=seed).drawing(tiny_base) for seed in range(3)]
    handle = tiny_base.unet.register_forward_pre_hook(fail)
    with engine_of(tiny_base, max_batch=2) as engine:
        engine.submit(drawings)
        for drawing in drawings[:2]:
            with pytest.raises(MemoryError):
                drawing.picture.result(PATIENCE)
        assert torch.equal(drawings[2].picture.result(PATIENCE), alone(tiny_base, Wish(seed=2)))
        assert engine.alive


def test_a_drawing_of_another_base_fails_alone(tiny_base: BaseModel) -> None:
    broken, beside = (Wish().drawing(tiny_base) for _ in range(2))
    broken.kv_RLK = broken.kv_RLK[..., :-1]
    with engine_of(tiny_base) as engine:
        engine.submit([broken, beside])
        with pytest.raises(ValueError, match="another base"):
            broken.picture.result(PATIENCE)
        assert torch.equal(beside.picture.result(PATIENCE), alone(tiny_base, Wish()))


def test_numbers_that_are_not_finite_are_no_picture(tiny_base: BaseModel) -> None:
    broken, beside = (Wish().drawing(tiny_base) for _ in range(2))
    broken.kv_RLK = torch.full_like(broken.kv_RLK, torch.inf)
    with engine_of(tiny_base) as engine:
        engine.submit([broken, beside])
        with pytest.raises(RefusedError, match="finite"):
            broken.picture.result(PATIENCE)
        assert distance(beside.picture.result(PATIENCE), alone(tiny_base, Wish())) <= NEAR


def test_a_picture_that_cannot_be_decoded_fails_alone(tiny_base: BaseModel) -> None:
    def fail(_: object, inputs: tuple[Tensor]) -> None:
        if (inputs[0].flatten(1).abs().amax(1) > 1e3).any():
            raise MemoryError

    broken, *others = (Wish(steps=1, seed=seed).drawing(tiny_base) for seed in range(3))
    broken.latent_CHW *= 1e6
    handle = tiny_base.vae.decoder.register_forward_pre_hook(fail)
    with engine_of(tiny_base) as engine:
        engine.submit([broken, *others])
        with pytest.raises(MemoryError):
            broken.picture.result(PATIENCE)
        assert all(drawing.picture.result(PATIENCE).any() for drawing in others)
    handle.remove()


def test_decoding_holds_up_no_step_and_what_is_finished_together_is_decoded_together(tiny_base: BaseModel) -> None:
    sizes: list[int] = []
    go_on = threading.Event()

    def hold(_: object, inputs: tuple[Tensor]) -> None:
        sizes.append(len(inputs[0]))
        assert go_on.wait(PATIENCE)

    drawings = [Wish(steps=steps, seed=seed).drawing(tiny_base) for seed, steps in enumerate((1, 3, 3, 5))]
    handle = tiny_base.vae.decoder.register_forward_pre_hook(hold)
    try:
        with engine_of(tiny_base) as engine:
            engine.submit(drawings)
            wait_until(lambda: engine.steps_done == 5)
            assert not any(drawing.picture.done() for drawing in drawings)
            go_on.set()
            assert all(drawing.picture.result(PATIENCE).any() for drawing in drawings)
    finally:
        go_on.set()
        handle.remove()
    assert sizes == [1, 2, 1], "however many wait for the decoder"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_if_the_thread_dies_nobody_waits_for_ever(tiny_base: BaseModel) -> None:
    drawing = Wish(steps=100).drawing(tiny_base)
    with Gate(tiny_base) as gate, engine_of(tiny_base) as engine:
        engine.submit([drawing])
        gate.arrived()
        engine.submit([replace(drawing, table=None)])  # type: ignore[arg-type]
        gate.let()
        with pytest.raises(UnavailableError, match="restarting"):
            drawing.picture.result(PATIENCE)
        engine.stop()
        assert not engine.alive
