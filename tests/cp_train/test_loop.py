"""The loop: resumed bit by bit, the same in shards, and touching nothing but what it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cp_train.denoise import MAX_SEED, Denoising, LoopConfig, Pictures, check_shares
from cp_train.loop import Loop
from cp_train.methods import Memory, Method
from cp_train.methods.composed import DSCEWCDCKV, EWCDCKV
from cp_train.methods.dsc import Distillation, DSCConfig
from cp_train.methods.ewc import EWC
from cp_train.methods.finetune import Finetune
from cp_train.methods.kv import protect
from cp_train.phase import Phase, Rate, Shard, State
from cp_train.student import Student
from services import scores
from services.adapter import TrainingState
from services.base_model import BaseModel
from services.errors import InputError
from tests.bases import random_latents, some_adapter, student_of

PROMPTS = ["a photo of a <new>", "a photo of a <new> mug"]
STEPS, SECOND = 5, 3


def distillation_of(student: Student, config: LoopConfig, shard: Shard) -> Distillation:
    """A second phase with one teacher, who knows `<fox>`."""
    return Distillation(
        student,
        student,
        shard=shard,
        latents_NCHW=random_latents(student.base, 3),
        teachers=[some_adapter(student.base.layout, {"fox": 1}, rank=2, seed=5)],
        prompts=lambda _generator, earlier: ["a photo of a <new>", "a photo of a mug", f"a photo of a <{earlier}>"],
        config=DSCConfig(steps=SECOND, pool=2, lr=0.01, warmup=1),
        batch_size=config.batch_size,
        tau=0.05,
        seed=config.seed,
    )


def loop_of(
    base: BaseModel,
    *,
    shard: Shard = Shard(),  # noqa: B008
    method: type[Method] = EWC,
    distils: bool = False,
    token_only: bool = False,
    **changes: Any,
) -> Loop:
    student = student_of(base, earlier=("fox",))
    parent = student.adapter()
    fisher = TrainingState(torch.ones_like(parent.down_PRD), torch.ones_like(parent.up_KR))
    protected = protect(base, student.tokenize(["a photo of a <fox>", ""]), parent) if method.protects else None
    chosen = method(Memory(parent, fisher, protected), weight=0.5, kv_weight=1.0, kv_ridge=0.1)
    config = LoopConfig(**{"steps": STEPS, "batch_size": 4, "warmup": 2, "lr": 0.01} | changes)
    pictures = Pictures.of_one(random_latents(base, 3), PROMPTS)
    phases: list[Phase] = [Denoising(student, student, pictures, config, shard, token_only=token_only)]
    return Loop(student, chosen, [*phases, distillation_of(student, config, shard)] if distils else phases)


def draw(loop: Loop, step: int = 0) -> tuple[scores.Trial, Tensor]:
    phase = loop.phases[0]
    assert isinstance(phase, Denoising)
    return phase.draw(step)


def weights(student: Student) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in student.parameters()]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("method", "distils"), [(EWC, False), (EWC, True), (EWCDCKV, False), (DSCEWCDCKV, True)])
def test_a_run_resumed_from_any_checkpoint_ends_with_the_same_weights_bit_by_bit(
    any_base: BaseModel, tmp_path: Path, method: type[Method], distils: bool
) -> None:
    end = STEPS + (SECOND if distils else 0)

    def keep(step: int, _loss: float, state: Any) -> None:
        save_file(state(), tmp_path / f"{step}.safetensors")

    whole = loop_of(any_base, method=method, distils=distils)
    whole.run(keep)
    for step in range(1, end + 1):
        resumed = loop_of(any_base, method=method, distils=distils)
        steps: list[int] = []
        resumed.restore(load_file(tmp_path / f"{step}.safetensors"))
        assert resumed.step == step
        resumed.run(lambda s, *_, steps=steps: steps.append(s))
        assert steps == list(range(step + 1, end + 1))
        assert equal(weights(resumed.student), weights(whole.student))


def test_two_runs_on_several_threads_give_the_same_weights_bit_by_bit(embedded_base: BaseModel) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ends = []
        for _ in range(2):
            loop = loop_of(embedded_base, steps=3)
            loop.run(lambda *_: None)
            ends.append(weights(loop.student))
    finally:
        torch.set_num_threads(threads)
    assert equal(*ends)


def test_a_checkpoint_does_not_change_while_training_goes_on(tiny_base: BaseModel) -> None:
    states: list[State] = []
    copies: list[State] = []

    def keep(_step: int, _loss: float, state: Any) -> None:
        states.append(state())
        copies.append({key: value.clone() for key, value in states[-1].items()})

    loop_of(tiny_base).run(keep)
    for state, copied in zip(states, copies, strict=True):
        assert all(torch.equal(state[key], copied[key]) for key in copied)
    assert [int(state["step"]) for state in states] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("distils", [False, True])
@pytest.mark.parametrize(("batch_size", "world"), [(4, 2), (4, 3), (3, 3)])
def test_the_mean_of_the_workers_gradients_is_that_of_one_worker(
    tiny_base: BaseModel, batch_size: int, world: int, distils: bool
) -> None:
    def gradients(shard: Shard) -> list[Tensor]:
        loop = loop_of(tiny_base, shard=shard, steps=1, batch_size=batch_size, distils=distils)
        if distils:  # in the second phase from the same weights, whatever a first one of shards apart would have made
            start = loop_of(tiny_base, steps=1).state() | {"step": torch.tensor(1)}
            loop.restore(start)
            with torch.no_grad():
                loop.student.up_KR.add_(0.1)
            loop.phases[1].steps = 1
            loop.steps = 2
        loop.run(lambda *_: None)
        return [parameter.grad for parameter in loop.student.parameters() if parameter.grad is not None]

    alone = gradients(Shard())
    shares = [gradients(Shard(rank, world)) for rank in range(world)]
    assert len(alone) == 3
    for whole, *parts in zip(alone, *shares, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-6)
        assert not whole.any() or not torch.allclose(parts[0], whole, rtol=1e-2)  # none for a frozen embedding


def test_every_row_of_the_batch_goes_to_one_worker(tiny_base: BaseModel) -> None:
    whole, _ = draw(loop_of(tiny_base))
    parts = [draw(loop_of(tiny_base, shard=Shard(rank, 3)))[0] for rank in range(3)]
    found = sorted(tuple(row.flatten().tolist()) for part in parts for row in part.noisy_SCHW)
    assert found == sorted(tuple(row.flatten().tolist()) for row in whole.noisy_SCHW)


def test_each_step_draws_anew_and_from_the_seed_alone(tiny_base: BaseModel) -> None:
    loop, other = loop_of(tiny_base), loop_of(tiny_base, seed=1)
    first = draw(loop)[0].noisy_SCHW
    assert torch.equal(first, draw(loop_of(tiny_base))[0].noisy_SCHW)
    assert not torch.equal(first, draw(other)[0].noisy_SCHW)
    assert not torch.equal(first, draw(loop, step=1)[0].noisy_SCHW)


def test_what_is_reported_is_the_denoising_loss_without_the_penalty(tiny_base: BaseModel) -> None:
    loop, losses = loop_of(tiny_base, steps=1), []
    with torch.no_grad():
        loop.student.up_KR.add_(0.1)
    trial, prompts = draw(loop)
    with torch.no_grad():
        kv = loop.student(loop.student.encode(loop.student.tokenize(PROMPTS)))[prompts].unsqueeze(1)
        expected = scores.errors(tiny_base, trial, kv).mean().item()
    loop.run(lambda _step, loss, _state: losses.append(loss))
    assert losses == pytest.approx([expected], rel=1e-5)


def test_the_penalty_is_part_of_what_is_descended(tiny_base: BaseModel) -> None:
    plain, penalized = (loop_of(tiny_base, method=kind, steps=4, lr=0.05) for kind in (Finetune, EWC))
    start = penalized.student.up_KR.detach().clone()
    for loop in (plain, penalized):
        loop.run(lambda *_: None)
    moved = [(loop.student.up_KR - start).square().sum() for loop in (plain, penalized)]
    assert moved[1] < moved[0]


def test_training_leaves_the_base_and_the_earlier_tokens_alone(any_base: BaseModel) -> None:
    modules = (any_base.unet, any_base.text_encoder, any_base.vae)
    before = [value.clone() for module in modules for value in module.state_dict().values()]
    projections = any_base.weight_KD.clone()
    loop = loop_of(any_base, steps=2)
    token, start = loop.student.earlier["fox"].clone(), weights(loop.student)
    loop.run(lambda *_: None)
    assert equal(before, [value for module in modules for value in module.state_dict().values()])
    assert torch.equal(any_base.weight_KD, projections)
    assert torch.equal(loop.student.adapter().tokens["fox"], token)
    assert not any(torch.equal(a, b) for a, b in zip(start, weights(loop.student), strict=True))
    assert not any(p.requires_grad or p.grad is not None for module in modules for p in module.parameters())


def test_both_rates_follow_the_schedule(tiny_base: BaseModel) -> None:
    loop = loop_of(tiny_base, steps=3, lr=0.01, token_lr=0.02)
    loop.run(lambda *_: None)
    rates = [Rate(peak, warmup=2, steps=3)(2) for peak in (0.01, 0.02)]
    assert [group["lr"] for group in loop.optimizer.adam.param_groups] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps and batch size must be at least 1"),
        ({"batch_size": 0}, "steps and batch size must be at least 1"),
        ({"warmup": -1}, "warm-up at least 0"),
        ({"lr": 0.0}, "learning rates must be above 0"),
        ({"lr": float("nan")}, "learning rates must be above 0"),
        ({"token_lr": float("inf")}, "learning rates must be above 0"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": MAX_SEED}, "seed must be from 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoopConfig(**change)


def test_in_the_second_phase_the_embedding_rests_and_the_lora_moves(tiny_base: BaseModel) -> None:
    loop, at = loop_of(tiny_base, distils=True), {}
    loop.run(lambda step, _loss, _state: at.update({step: weights(loop.student)}))
    down, up, token = (torch.equal(a, b) for a, b in zip(at[STEPS], at[STEPS + SECOND], strict=True))
    assert (down, up, token) == (False, False, True)
    assert len(loop.optimizer.adam.param_groups) == 1


def test_with_the_embedding_alone_the_lora_rests(tiny_base: BaseModel) -> None:
    loop = loop_of(tiny_base, token_only=True)
    before = weights(loop.student)
    loop.run(lambda *_: None)
    assert [torch.equal(a, b) for a, b in zip(before, weights(loop.student), strict=True)] == [True, True, False]


def test_only_prompts_that_were_drawn_are_encoded(tiny_base: BaseModel) -> None:
    loop, encoded = loop_of(tiny_base, batch_size=1, steps=6), []
    handle = tiny_base.text_encoder.register_forward_hook(lambda _m, ids, _out: encoded.append(len(ids[0])))
    try:
        loop.run(lambda *_: None)
    finally:
        handle.remove()
    assert encoded == [1] * 6


def test_bfloat16_multiplies_coarser_and_leaves_the_weights_float32(tiny_base: BaseModel) -> None:
    ends = {}
    for precision in ("float32", "bfloat16"):
        loop = loop_of(tiny_base, steps=1, precision=precision)
        loop.run(lambda *_: None)
        grad = loop.student.up_KR.grad
        assert grad is not None
        assert grad.dtype == loop.student.up_KR.dtype == torch.float32
        ends[precision] = grad.flatten()
    assert not torch.equal(*ends.values())
    assert torch.cosine_similarity(*ends.values(), dim=0) > 0.99


def test_the_largest_seed_can_be_drawn_from(tiny_base: BaseModel) -> None:
    loop = loop_of(tiny_base, seed=MAX_SEED - 1, steps=1)
    loop.run(lambda *_: None)


def test_more_workers_than_images_in_a_batch_are_refused(tiny_base: BaseModel) -> None:
    check_shares(LoopConfig(batch_size=2), 2)
    with pytest.raises(InputError, match=r"batch size 2 .* 3 training workers; raise it") as refused:
        loop_of(tiny_base, batch_size=2, shard=Shard(2, 3))
    assert refused.value.param == "batch_size"
