"""Fisher information against numbers worked out by hand and against a plain loop of autograd."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cp_train.fisher import (
    FisherConfig,
    accumulate,
    fisher_information,
    normalised,
    objective,
    sample_gradients,
    stratified_trials,
)
from services import scores
from services.adapter import TrainingState
from services.base_model import BaseModel
from tests.bases import random_latents, student_of

PROMPTS = ["a photo of a <new>", "a photo of a mug", "a photo of a <fox>"]
SCALE = torch.tensor([0.9, 1.1, 1.3])


def test_the_objective_by_hand() -> None:
    # Logits -e / (tau s) with tau s = 0.1: -1, -2, -3.
    errors_SP = torch.tensor([[0.1, 0.2, 0.3]])
    total = math.exp(-1) + math.exp(-2) + math.exp(-3)
    cross = [logit + math.log(total) for logit in (1, 2, 3)]
    found = objective(errors_SP, torch.tensor([2.0]), contrast=0.7, beta=0.5, tau=0.05)
    assert found.tolist() == pytest.approx([0.1 + 0.7 * (cross[0] - 0.5 * (cross[1] + cross[2]) / 2)], rel=1e-5)


def test_without_contrast_the_objective_is_the_denoising_loss() -> None:
    errors_SP = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    found = objective(errors_SP, torch.ones(4), contrast=0.0, beta=0.5, tau=0.05)
    assert torch.equal(found, errors_SP[:, 0])


def test_at_beta_one_the_normaliser_cancels_to_a_linear_contrast() -> None:
    errors_SP = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    logits = -errors_SP / (0.05 * scale.unsqueeze(1))
    linear = errors_SP[:, 0] + logits[:, 1:].mean(1) - logits[:, 0]
    found = objective(errors_SP, scale, contrast=1.0, beta=1.0, tau=0.05)
    torch.testing.assert_close(found, linear)
    slopes = [torch.autograd.grad(value.sum(), errors_SP, retain_graph=True)[0] for value in (found, linear)]
    torch.testing.assert_close(*slopes)


def test_below_beta_one_it_does_not_cancel() -> None:
    errors_SP = torch.tensor([[0.1, 0.2, 0.9]], dtype=torch.float64)
    raised = errors_SP + torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64)
    half = [objective(e, torch.ones(1), contrast=1.0, beta=0.5, tau=0.05) for e in (errors_SP, raised)]
    assert half[1] - half[0] == pytest.approx(-0.5 * 5 / 0.05 / 2, rel=1e-3)


def test_gradients_of_one_batched_backward_are_those_of_one_sample_at_a_time(any_base: BaseModel) -> None:
    student = student_of(any_base, earlier=("fox",))
    trial = scores.draw_trial(any_base, random_latents(any_base, 3), torch.Generator().manual_seed(0))
    with torch.no_grad():
        context = student.encode(student.tokenize(PROMPTS))

    def loss(errors_SP: Tensor, scale_S: Tensor = SCALE) -> Tensor:
        return objective(errors_SP, scale_S, contrast=1.0, beta=0.5, tau=0.05)

    (down_SPRD, up_SKR), errors_SP = sample_gradients(student, trial, context, loss)
    assert down_SPRD.dtype == up_SKR.dtype == errors_SP.dtype == torch.float32
    assert not errors_SP.requires_grad
    for s in range(3):
        one = scores.Trial(trial.t_S[s : s + 1], trial.noisy_SCHW[s : s + 1], trial.target_SCHW[s : s + 1])
        found = scores.errors(any_base, one, student(context).unsqueeze(0))
        down, up = torch.autograd.grad(loss(found, SCALE[s : s + 1]).sum(), student.weights)
        torch.testing.assert_close(errors_SP[s], found[0].detach(), rtol=1e-4, atol=1e-6)
        for batched, plain in ((down_SPRD[s], down), (up_SKR[s], up)):
            torch.testing.assert_close(batched, plain, rtol=2e-3, atol=1e-4 * float(plain.abs().max()))
    assert not torch.allclose(up_SKR[0], up_SKR[1])


def test_the_logits_of_several_trials_are_averaged_by_hand() -> None:
    # One sample, two trials; logits -e / 0.1 average to -2 and -3.
    errors_SP = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
    found = objective(errors_SP, torch.tensor([2.0, 2.0]), contrast=1.0, beta=0.5, tau=0.05, trials=2)
    total = math.log(math.exp(-2) + math.exp(-3))
    assert found.tolist() == pytest.approx([0.2 + (2 + total) - 0.5 * (3 + total)], rel=1e-5)


def test_gradients_with_trials_are_those_of_one_sample_with_its_trials(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    latents = random_latents(tiny_base, 2).repeat_interleave(3, 0)
    trial = scores.draw_trial(tiny_base, latents, torch.Generator().manual_seed(0))
    with torch.no_grad():
        context = student.encode(student.tokenize(PROMPTS))

    def loss(errors_SP: Tensor) -> Tensor:
        return objective(errors_SP, torch.ones(len(errors_SP)), contrast=1.0, beta=0.5, tau=0.05, trials=3)

    (_, up_SKR), errors_SP = sample_gradients(student, trial, context, loss, trials=3)
    assert errors_SP.shape == (6, 3)
    assert len(up_SKR) == 2
    for sample in range(2):
        own = trial.rows(slice(3 * sample, 3 * sample + 3))
        found = scores.errors(tiny_base, own, student(context).expand(3, -1, -1, -1))
        (up,) = torch.autograd.grad(loss(found).sum(), student.up_KR)
        torch.testing.assert_close(up_SKR[sample], up, rtol=2e-3, atol=1e-4 * float(up.abs().max()))


@pytest.mark.parametrize("chunk", [1, 4, 5, 17])
def test_in_chunks_the_gradients_are_the_same_in_less_rows_at_once(any_base: BaseModel, chunk: int) -> None:
    student = student_of(any_base, earlier=("fox",))
    latents = random_latents(any_base, 3).repeat_interleave(2, 0)
    trial = scores.draw_trial(any_base, latents, torch.Generator().manual_seed(0))
    with torch.no_grad():
        context = student.encode(student.tokenize(PROMPTS))

    def loss(errors_SP: Tensor) -> Tensor:
        return objective(errors_SP, torch.ones(len(errors_SP)), contrast=1.0, beta=0.5, tau=0.05, trials=2)

    rows: list[int] = []
    gradients, errors_SP = sample_gradients(student, trial, context, loss, trials=2)
    handle = any_base.unet.register_forward_hook(lambda _m, arguments, _out: rows.append(len(arguments[0])))
    try:
        in_chunks, same_SP = sample_gradients(student, trial, context, loss, trials=2, chunk=chunk)
    finally:
        handle.remove()
    assert max(rows) == chunk
    assert sum(rows) == 2 * errors_SP.numel() == 36
    torch.testing.assert_close(same_SP, errors_SP, rtol=1e-5, atol=1e-6)
    for found, expected in zip(in_chunks, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_pass_in_chunks_gives_the_same_information(tiny_base: BaseModel) -> None:
    student, latents = student_of(tiny_base, earlier=("fox",)), random_latents(tiny_base, 4)
    found = [
        fisher_information(
            student, latents, lambda _: PROMPTS, FisherConfig(batches=2, batch_size=2, trials=2, chunk=chunk), seed=9
        )
        for chunk in (0, 3)
    ]
    for name in ("down_PRD", "up_KR"):
        whole, in_chunks = (getattr(one, name) for one in found)
        torch.testing.assert_close(in_chunks, whole, rtol=1e-4, atol=1e-6 * float(whole.max()))


def test_no_prompt_is_encoded_twice_in_a_pass(tiny_base: BaseModel) -> None:
    encoded = []
    handle = tiny_base.text_encoder.register_forward_hook(lambda _m, ids, _out: encoded.append(len(ids[0])))
    try:
        config = FisherConfig(batches=3, batch_size=1)
        fisher_information(student_of(tiny_base), random_latents(tiny_base, 1), lambda _: PROMPTS[:2], config, seed=0)
    finally:
        handle.remove()
    assert encoded == [2]


def test_the_fisher_is_the_mean_square_of_the_sample_gradients_scaled_to_mean_one(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    latents = random_latents(tiny_base, 4)
    config = FisherConfig(batches=2, batch_size=2, contrast=0.7, beta=0.25, tau=0.2)  # no setting at its default
    found = fisher_information(student, latents, lambda _: PROMPTS, config, seed=9)

    generator, scale = torch.Generator().manual_seed(9), scores.ErrorScale()
    squares = [torch.zeros_like(parameter) for parameter in student.weights]
    for trial in stratified_trials(tiny_base, latents, config, generator):
        kv = student(student.encode(student.tokenize(PROMPTS)).detach())
        errors_SP = scores.errors(tiny_base, trial, kv.expand(2, *kv.shape))
        scale.update(trial.t_S, errors_SP)
        losses = objective(errors_SP, scale(trial.t_S), contrast=0.7, beta=0.25, tau=0.2)
        for loss in losses:
            gradients = torch.autograd.grad(loss, student.weights, retain_graph=True)
            squares = [total + gradient.square() for total, gradient in zip(squares, gradients, strict=True)]
    expected = normalised(*squares)
    torch.testing.assert_close(found.down_PRD, expected.down_PRD, rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(found.up_KR, expected.up_KR, rtol=5e-3, atol=1e-4)
    assert torch.cat([found.down_PRD.flatten(), found.up_KR.flatten()]).mean().item() == pytest.approx(1, rel=1e-4)
    assert found.down_PRD.dtype == found.up_KR.dtype == torch.float32
    assert (found.down_PRD >= 0).all()


@pytest.mark.parametrize(("batches", "size", "trials"), [(10, 1, 1), (5, 2, 2), (5, 5, 1)])
def test_a_pass_looks_at_every_image_and_every_stretch_of_the_schedule(
    velocity_base: BaseModel, batches: int, size: int, trials: int
) -> None:
    latents = random_latents(velocity_base, 5)
    config = FisherConfig(batches=batches, batch_size=size, trials=trials)
    seen: list[int] = []
    for seed in range(3):
        found = list(stratified_trials(velocity_base, latents, config, torch.Generator().manual_seed(seed)))
        assert [len(trial.t_S) for trial in found] == [size * trials] * batches
        rows = batches * size * trials
        t = torch.cat([trial.t_S for trial in found])
        assert sorted((t * rows // 1000).tolist()) == list(range(rows))
        seen += t.tolist()
        bar = velocity_base.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy, target = (torch.cat([getattr(trial, name) for trial in found]) for name in ("noisy_SCHW", "target_SCHW"))
        shown = bar.sqrt() * noisy - (1 - bar).sqrt() * target  # x_0 of a velocity
        image = (shown.unsqueeze(1) - latents).flatten(2).norm(dim=2).argmin(1)
        assert all(len(set(group)) == 1 for group in image.view(-1, trials).tolist())
        counts = torch.bincount(image[::trials], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert len(set(seen)) > len(seen) / 2, "drawn anew for every seed"


def test_a_pass_of_many_rows_stays_within_the_schedule(tiny_base: BaseModel) -> None:
    config = FisherConfig(batches=1, batch_size=1500)
    (trial,) = stratified_trials(tiny_base, random_latents(tiny_base, 1), config, torch.Generator().manual_seed(0))
    shares = torch.bincount(trial.t_S, minlength=1000)
    assert shares.sum() == 1500
    assert set(shares.tolist()) <= {1, 2}


def test_a_fisher_pass_reads_the_student_and_changes_nothing(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base)
    before = [parameter.clone() for parameter in student.parameters()]
    config = FisherConfig(batches=1, batch_size=1)
    first, again = (
        fisher_information(student, random_latents(tiny_base, 1), lambda _: PROMPTS[:2], config, seed=0)
        for _ in range(2)
    )
    assert torch.equal(first.up_KR, again.up_KR)
    assert all(torch.equal(b, a) for b, a in zip(before, student.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in student.parameters())


def test_normalising_by_hand() -> None:
    found = normalised(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[1.0], [4.0]]))
    assert found.down_PRD.tolist() == [[[1.5, 0.0]]]
    assert found.up_KR.tolist() == [[0.5], [2.0]]


def test_a_zero_fisher_stays_zero() -> None:
    found = normalised(torch.zeros(1, 1, 2), torch.zeros(3, 1))
    assert not found.down_PRD.any()
    assert not found.up_KR.any()


def test_tasks_add_up_and_earlier_ones_decay_by_gamma() -> None:
    old = TrainingState(torch.full((1, 1, 1), 2.0), torch.full((1, 1), 4.0))
    new = TrainingState(torch.full((1, 1, 1), 1.0), torch.full((1, 1), 1.0))
    assert accumulate(None, new, gamma=0.5) is new
    found = accumulate(old, new, gamma=0.5)
    assert (found.down_PRD.item(), found.up_KR.item()) == (2.0, 3.0)
    assert accumulate(old, new, gamma=1.0).up_KR.item() == 5.0


@pytest.mark.parametrize(
    "change",
    [
        {"batches": 0},
        {"batch_size": 0},
        {"tau": 0.0},
        {"tau": math.nan},
        {"earlier": -1},
        {"trials": 0},
        {"chunk": -1},
        {"gamma": -0.5},
        {"beta": math.inf},
        {"contrast": math.nan},
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Fisher: .* must be"):
        FisherConfig(**change)
