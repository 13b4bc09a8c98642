"""Figures of a version."""

import pytest
import torch

from cp_train.evaluation.metrics import SEED, dc_accuracy, denoising_loss, trial_logits
from services import scores
from services.base_model import BaseModel
from services.conditioning import condition
from tests.bases import random_latents, some_adapter

PROMPTS = ["a photo of a <mug>", "a photo of a mug"]


def test_the_denoising_loss_is_a_mean_over_fixed_trials(any_base: BaseModel) -> None:
    adapter, latents = some_adapter(any_base.layout, {"mug": 1}), random_latents(any_base, 2)
    found = denoising_loss(any_base, adapter, latents, PROMPTS[0], repeats=2)
    assert found == denoising_loss(any_base, adapter, latents, PROMPTS[0], repeats=2)
    assert found != denoising_loss(any_base, adapter, latents, PROMPTS[1], repeats=2)
    assert 0 < found < 100


def test_accuracy_is_the_share_of_pictures_that_the_first_prompt_explains_best(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, latents = some_adapter(tiny_base.layout, {"mug": 1}), random_latents(tiny_base, 4)
    answers = iter([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    monkeypatch.setattr(scores, "classify", lambda *_, **__: torch.tensor(next(answers)))
    assert dc_accuracy(tiny_base, adapter, latents, PROMPTS, tau=0.05) == 0.75


def test_a_prompt_that_predicts_a_picture_better_wins_it(tiny_base: BaseModel) -> None:
    adapter, latent = some_adapter(tiny_base.layout, {"mug": 1}), random_latents(tiny_base, 1)
    kv = condition(tiny_base, PROMPTS, adapter)
    first = scores.classify(tiny_base, latent[0], kv, trials=8, tau=0.05, seed=20_241_000)[0] > 0.5
    found = dc_accuracy(tiny_base, adapter, latent, PROMPTS, tau=0.05)
    assert found == float(first)
    assert dc_accuracy(tiny_base, adapter, latent, PROMPTS[::-1], tau=0.05) == 1 - found


def test_the_mean_of_trials_is_what_the_classifier_says(any_base: BaseModel) -> None:
    adapter, latents = some_adapter(any_base.layout, {"mug": 1}), random_latents(any_base, 1)
    kv = condition(any_base, PROMPTS, adapter)
    logits = trial_logits(any_base, latents, kv, tau=0.05, trials=4)
    assert logits.shape == (1, 4, 2)
    said = scores.classify(any_base, latents[0], kv, trials=4, tau=0.05, seed=SEED)
    assert torch.allclose(logits[0].mean(0).softmax(0), said, atol=1e-4)
    assert logits.std(1).min() > 0
