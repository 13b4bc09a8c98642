"""Diffusion-classifier scores against numbers worked out by hand, and their one U-Net call."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch

from services import scores
from services.base_model import BaseModel
from services.conditioning import condition
from services.scores import FLOOR, ErrorScale, Trial, classify, draw_trial, errors, log_probabilities, make_trial
from tests.bases import random_latents, reference, some_adapter

PROMPTS = ["a photo of a <mug>", "a photo of a mug", "a red fox"]


@contextmanager
def counted(base: BaseModel) -> Iterator[list[int]]:
    """Batch sizes of the U-Net's calls."""
    sizes: list[int] = []
    handle = base.unet.register_forward_hook(lambda _module, arguments, _out: sizes.append(len(arguments[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def test_the_noisy_latents_are_the_schedulers(any_base: BaseModel) -> None:
    latents, noise, t = random_latents(any_base, 3), random_latents(any_base, 3, seed=1), torch.tensor([0, 421, 999])
    scheduler = reference(any_base).scheduler
    trial = make_trial(any_base, latents, t, noise)
    torch.testing.assert_close(trial.noisy_SCHW, scheduler.add_noise(latents, noise, t))
    if any_base.prediction_type == "v_prediction":
        torch.testing.assert_close(trial.target_SCHW, scheduler.get_velocity(latents, noise, t))
    else:
        assert torch.equal(trial.target_SCHW, noise)


def test_the_target_by_hand(tiny_bases: Mapping[str, BaseModel]) -> None:
    latents, noise = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 2.0)
    t = torch.tensor([500])
    for kind, base in tiny_bases.items():
        bar = float(base.alphas_cumprod[500])
        trial = make_trial(base, latents, t, noise)
        assert trial.noisy_SCHW.item() == pytest.approx(math.sqrt(bar) * 3 + math.sqrt(1 - bar) * 2, rel=1e-5)
        velocity = math.sqrt(bar) * 2 - math.sqrt(1 - bar) * 3
        assert trial.target_SCHW.item() == pytest.approx(2.0 if kind == "epsilon" else velocity, rel=1e-5)


def test_at_the_last_step_of_zero_snr_the_target_is_the_picture_and_the_input_pure_noise(
    velocity_base: BaseModel,
) -> None:
    latents, noise = random_latents(velocity_base, 1), random_latents(velocity_base, 1, seed=1)
    trial = make_trial(velocity_base, latents, torch.tensor([999]), noise)
    assert torch.equal(trial.noisy_SCHW, noise)
    assert torch.equal(trial.target_SCHW, -latents)


def test_a_trial_is_drawn_uniformly_and_again_from_its_seed(tiny_base: BaseModel) -> None:
    latents = random_latents(tiny_base, 1).expand(4000, -1, -1, -1)[:, :1, :1, :1]
    first, again = (draw_trial(tiny_base, latents, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.t_S, again.t_S)
    assert torch.equal(first.noisy_SCHW, again.noisy_SCHW)
    assert first.t_S.min() < 10
    assert 990 <= first.t_S.max() <= 999
    shares = torch.bincount(first.t_S // 100, minlength=10) / 4000
    assert ((shares > 0.07) & (shares < 0.13)).all()


def test_all_prompts_of_all_samples_are_one_unet_call(any_base: BaseModel) -> None:
    adapter = some_adapter(any_base.layout, {"mug": 1})
    kv = condition(any_base, PROMPTS, adapter)
    trial = draw_trial(any_base, random_latents(any_base, 2), torch.Generator().manual_seed(0))
    with torch.no_grad(), counted(any_base) as sizes:
        found = errors(any_base, trial, kv.expand(2, *kv.shape))
    assert sizes == [6]
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32


def test_the_errors_are_those_of_separate_calls_that_share_time_and_noise(any_base: BaseModel) -> None:
    adapter = some_adapter(any_base.layout, {"mug": 1})
    kv = condition(any_base, PROMPTS, adapter)
    trial = draw_trial(any_base, random_latents(any_base, 2), torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = errors(any_base, trial, kv.expand(2, *kv.shape))
        for s in range(2):
            for p in range(3):
                out = any_base.unet(trial.noisy_SCHW[s : s + 1], trial.t_S[s], encoder_hidden_states=kv[p : p + 1])
                expected = (out.sample - trial.target_SCHW[s : s + 1]).square().mean()
                torch.testing.assert_close(found[s, p], expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_probabilities_by_hand() -> None:
    errors_SP = torch.tensor([[0.10, 0.11, 0.09], [1.0, 1.0, 1.1]])
    found = log_probabilities(errors_SP, torch.tensor([0.1, 1.0]), tau=0.05)
    # Logits -e / (tau s): -20, -22, -18 and -20, -20, -22.
    first = [math.exp(x) for x in (-2, -4, 0)]
    second = [math.exp(x) for x in (0, 0, -2)]
    expected = torch.tensor([[x / sum(row) for x in row] for row in (first, second)])
    torch.testing.assert_close(found.exp(), expected)
    assert found.dtype == torch.float32


def test_a_five_percent_better_error_is_one_nat_at_any_timestep() -> None:
    for mean in (0.002, 0.4):
        odds = log_probabilities(torch.tensor([[mean * 0.95, mean]]), torch.tensor([mean]), tau=0.05)
        assert (odds[0, 0] - odds[0, 1]).item() == pytest.approx(1.0, rel=1e-4)


def test_the_scale_is_a_running_mean_over_concepts_in_buckets_of_100_timesteps() -> None:
    scale = ErrorScale(1000)
    scale.update(torch.tensor([0, 150]), torch.tensor([[0.2, 0.4], [1.0, 3.0]]))
    assert scale(torch.tensor([99, 100])).tolist() == pytest.approx([0.3, 2.0])
    scale.update(torch.tensor([99, 50]), torch.tensor([[0.5, 0.7], [0.8, 1.0]]))
    assert scale(torch.tensor([0, 199])).tolist() == pytest.approx([(0.3 + 0.6 + 0.9) / 3, 2.0])
    scale.update(torch.tensor([999]), torch.tensor([[5.0, 5.0]]))
    assert scale(torch.tensor([900])).tolist() == pytest.approx([5.0])


def test_the_scale_has_a_floor_and_no_gradient() -> None:
    scale, found = ErrorScale(250), torch.full((1, 2), 1e-9, requires_grad=True)
    scale.update(torch.tensor([249]), found)
    value = scale(torch.tensor([200]))
    assert value.tolist() == pytest.approx([FLOOR])
    assert not value.requires_grad


def test_classification_is_the_softmax_of_the_mean_logit(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    table = iter([torch.tensor([[0.10, 0.11], [0.20, 0.20]]), torch.tensor([[0.30, 0.27]])])
    times = iter([torch.tensor([0, 100]), torch.tensor([200])])
    blank = torch.zeros(1)
    monkeypatch.setattr(scores, "draw_trial", lambda *_: Trial(next(times), blank, blank))
    monkeypatch.setattr(scores, "errors", lambda *_: next(table))
    found = classify(tiny_base, torch.zeros(4, 8, 8), torch.zeros(2, 1, 1), trials=3, tau=0.05, seed=0, batch=4)
    logits = [sum(-e / (0.05 * s) for e, s in zip(es, (0.105, 0.2, 0.285), strict=True)) / 3 for es in
              ((0.10, 0.20, 0.30), (0.11, 0.20, 0.27))]  # fmt: skip
    assert found[0].item() == pytest.approx(1 / (1 + math.exp(logits[1] - logits[0])), rel=1e-4)


def test_classification_finds_the_prompt_that_predicts_best(tiny_base: BaseModel) -> None:
    kv = condition(tiny_base, PROMPTS, some_adapter(tiny_base.layout, {"mug": 1}))
    latent = random_latents(tiny_base, 1)[0]
    with counted(tiny_base) as sizes:
        found = classify(tiny_base, latent, kv, trials=7, tau=0.05, seed=5, batch=9)
    assert sizes == [9, 9, 3]
    assert found.sum().item() == pytest.approx(1, rel=1e-5)
    again = classify(tiny_base, latent, kv.flip(0), trials=7, tau=0.05, seed=5, batch=9)
    torch.testing.assert_close(found, again.flip(0))


def test_classification_can_be_ended_before_any_pass(tiny_base: BaseModel) -> None:
    passes = iter(range(2))

    def check() -> None:
        next(passes)

    kv = condition(tiny_base, ["a fox", "a robot"], None)
    with counted(tiny_base) as sizes, pytest.raises(StopIteration):
        classify(tiny_base, torch.zeros(4, 8, 8), kv, trials=64, tau=0.05, seed=0, batch=8, check=check)
    assert sizes == [8, 8], "of sixteen"
