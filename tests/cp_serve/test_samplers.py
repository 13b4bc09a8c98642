"""The tables against diffusers' own schedulers, stepped one by one."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cp_serve.samplers import SAMPLERS, sampler_table, scheduler_of
from services.base_model import BaseModel
from services.errors import InputError, RefusedError

SD15: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SD21: dict[str, Any] = {**SD15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
ZERO_SNR: dict[str, Any] = {
    **SD21,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}


def with_schedule(base: BaseModel, **config: object) -> BaseModel:
    return replace(base, scheduler_config=config)


def model_output(x: Tensor, t: float) -> Tensor:
    """Any function of latent and timestep will do."""
    return (x * 1.7 + t / 500).sin() + 0.3 * x


def by_table(base: BaseModel, sampler: str, steps: int, noise: Tensor) -> Tensor:
    table = sampler_table(base, sampler, steps)
    assert len(table) == steps
    x, before = noise * table.start, torch.zeros_like(noise)
    for t, p, q, a, b, c in table.rows:
        predicted = p * x + q * model_output(x, t)
        x, before = a * x + b * predicted + c * before, predicted
    return x


def by_scheduler(base: BaseModel, sampler: str, steps: int, noise: Tensor) -> Tensor:
    scheduler = scheduler_of(base, sampler)
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(model_output(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
    return x


def noise_of(seed: int) -> Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", [SD15, SD21, ZERO_SNR], ids=["sd15", "sd21", "zero-snr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 20, 50, 99, 100])
def test_the_last_latent_is_that_of_diffusers(
    tiny_base: BaseModel, config: dict[str, Any], sampler: str, steps: int
) -> None:
    base, noise = with_schedule(tiny_base, **config), noise_of(steps)
    expected = by_scheduler(base, sampler, steps, noise)
    # With zero terminal SNR diffusers' Euler begins at a sigma of 4096, where float32 has three digits after the point.
    torch.testing.assert_close(by_table(base, sampler, steps, noise), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(60))
def test_so_is_it_for_any_schedule(tiny_base: BaseModel, seed: int) -> None:
    pick = random.Random(seed)
    steps, sampler = pick.choice([n for n in range(1, 101) if n != 61]), pick.choice(SAMPLERS)
    schedules = ["linear", "scaled_linear", "squaredcos_cap_v2"]
    config = {
        "beta_schedule": pick.choice(schedules[: 3 if sampler == "ddim" else 2]),
        "beta_start": pick.uniform(1e-4, 1e-3),
        "beta_end": pick.uniform(0.008, 0.02),
        "prediction_type": pick.choice(["epsilon", "v_prediction"]),
        "timestep_spacing": pick.choice(["leading", "trailing", "linspace"]),
        "set_alpha_to_one": pick.choice([True, False]),
        "steps_offset": pick.choice([0, 1]),
        "clip_sample": False,
    }
    base, noise = with_schedule(tiny_base, **config), noise_of(seed)
    expected = by_scheduler(base, sampler, steps, noise)
    found = by_table(base, sampler, steps, noise)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_61_trailing_steps_are_61(velocity_base: BaseModel, sampler: str) -> None:
    """Floating point makes diffusers append a 62nd at t = -1, which noises the picture again."""
    table = sampler_table(velocity_base, sampler, 61)
    assert len(table) == 61
    assert table.rows[0][0] == 999
    assert table.rows[-1][0] == 15


def test_samplers_differ(tiny_base: BaseModel) -> None:
    base = with_schedule(tiny_base, **SD15)
    ends = [by_table(base, sampler, 12, noise_of(0)) for sampler in SAMPLERS]
    assert all((one - other).abs().max() > 0.01 for i, one in enumerate(ends) for other in ends[:i])


def test_a_schedule_without_clip_sample_is_not_clipped(tiny_base: BaseModel) -> None:
    config = {key: value for key, value in SD15.items() if key != "clip_sample"}
    x = 5 * noise_of(0)
    unclipped = by_table(with_schedule(tiny_base, **SD15), "ddim", 10, x)
    assert torch.equal(by_table(with_schedule(tiny_base, **config), "ddim", 10, x), unclipped)


def test_what_cannot_be_sampled_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(InputError, match="there is no 'heun'; choose one of ddim, dpmpp_2m, euler") as refused:
        sampler_table(tiny_base, "heun", 10)
    assert refused.value.param == "sampler"
    for sampler, steps in (("ddim", 21), ("dpmpp_2m", 20)):
        with pytest.raises(InputError) as refused:
            sampler_table(with_schedule(tiny_base, num_train_timesteps=20), sampler, steps)
        assert refused.value.param == "steps"
    with pytest.raises(RefusedError, match="predicts 'sample'"):
        sampler_table(with_schedule(tiny_base, prediction_type="sample"), "ddim", 10)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_not_predicted_from_pure_noise(tiny_base: BaseModel, sampler: str) -> None:
    base = with_schedule(tiny_base, **{**ZERO_SNR, "prediction_type": "epsilon"})
    with pytest.raises(RefusedError, match="zero terminal SNR"):
        sampler_table(base, sampler, 10)
