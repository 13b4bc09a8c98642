"""DSC: its loss by hand, its teachers against plain passes of theirs, and what it costs."""

import math
from typing import Any

import pytest
import torch

from cp_train.methods.dsc import Answer, Distillation, DSCConfig, Lesson, cross_entropy, distillation_loss
from cp_train.phase import Shard
from cp_train.student import Student
from services import scores
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import project
from tests.bases import random_latents, some_adapter, student_of

CONFIG = DSCConfig(steps=4, pool=3, lr=0.02, warmup=1)


def phase_of(student: Student, teachers: list[Adapter], *, config: DSCConfig = CONFIG, seed: int = 0) -> Distillation:
    return Distillation(
        student,
        student,
        shard=Shard(),
        latents_NCHW=random_latents(student.base, 3),
        teachers=teachers,
        prompts=lambda _generator, earlier: ["a photo of a <new>", "a photo of a mug", f"a photo of a <{earlier}>"],
        config=config,
        batch_size=2,
        tau=0.05,
        seed=seed,
    )


def pixels(*values: float) -> torch.Tensor:
    """Predictions of one sample for some conditionals, one element each."""
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def test_the_cross_entropy_by_hand() -> None:
    p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    assert cross_entropy(p.log(), q.log()).item() == pytest.approx(math.log(2))
    assert cross_entropy(p.log(), p.log()).item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_the_loss_by_hand() -> None:
    trial = scores.Trial(torch.tensor([0]), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    first = Answer(torch.tensor([[0.1, 0.2, 0.3]]), torch.full((1, 1, 1, 1), 0.5))
    second = Answer(torch.tensor([[0.3, 0.2, 0.1]]), torch.full((1, 1, 1, 1), -1.0))
    lesson = Lesson(trial, torch.zeros(3, 1, 1), first, second)
    # Errors of the student: 0.01, 0.04, 0.09; logits -e / (0.05 * 2).
    found = distillation_loss(pixels(0.1, 0.2, 0.3), lesson, torch.tensor([2.0]), 0.05)

    def log_p(errors: list[float]) -> list[float]:
        logits = [-error / 0.1 for error in errors]
        return [logit - math.log(sum(map(math.exp, logits))) for logit in logits]

    student = log_p([0.01, 0.04, 0.09])
    entropies = [
        -sum(math.exp(t) * s for t, s in zip(log_p(e), student, strict=True))
        for e in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    ]
    assert found.item() == pytest.approx(sum(entropies) + (0.1 - 0.5) ** 2 + (0.3 + 1.0) ** 2, rel=1e-5)


def test_the_teachers_answer_as_their_own_weights_do(any_base: BaseModel) -> None:
    student = student_of(any_base, earlier=("fox",))
    teacher = some_adapter(any_base.layout, {"fox": 1}, rank=2, seed=5)
    phase = phase_of(student, [teacher])
    phase.begin(None)
    lesson = phase.pool[0]
    for adapter, answer, taught in ((student.adapter(), lesson.first, 0), (teacher, lesson.second, 2)):
        kv = project(any_base, lesson.context_PLD, adapter.down_PRD, adapter.up_KR, adapter.scale)
        predicted = torch.stack(
            [scores.predict(any_base, lesson.trial, kv[p].expand(2, 1, -1, -1))[:, 0].detach() for p in range(3)], 1
        )
        torch.testing.assert_close(answer.target_SCHW, predicted[:, taught], rtol=1e-3, atol=1e-4)
        errors = scores.mean_square(predicted, lesson.trial.target_SCHW.unsqueeze(1))
        torch.testing.assert_close(answer.errors_SP, errors, rtol=1e-3, atol=1e-4)
    assert not lesson.first.target_SCHW.requires_grad


def test_its_loss_falls_and_only_by_the_lora(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    phase = phase_of(student, [some_adapter(tiny_base.layout, {"fox": 1}, rank=2, seed=5)])
    (group,) = phase.begin(None)
    assert {id(parameter) for parameter in group.parameters} == {id(weight) for weight in student.weights}
    optimizer = torch.optim.Adam(group.parameters, lr=0.02)

    def missing() -> float:
        """The loss over the pool without the teachers' own entropies, which no student can go below."""
        found = []
        for lesson in phase.pool:
            scale = phase.scale(lesson.trial.t_S)
            with torch.no_grad():
                kv_SPLK = student(lesson.context_PLD).expand(2, -1, -1, -1)
                predicted = scores.predict(tiny_base, lesson.trial, kv_SPLK)
            answers = (lesson.first, lesson.second)
            own = [scores.log_probabilities(answer.errors_SP, scale, 0.05) for answer in answers]
            found.append(distillation_loss(predicted, lesson, scale, 0.05) - sum(cross_entropy(p, p) for p in own))
        return torch.cat(found).mean().item()

    before = missing()
    for step in range(12):
        student.zero_grad()
        phase.loss(step).backward()
        assert student.token.grad is not None
        assert not student.token.grad.any()
        optimizer.step()
    assert missing() < 0.9 * before


def test_every_minibatch_has_a_teacher_and_all_take_their_turns(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox", "cat", "owl"))
    names = ("fox", "cat", "owl")
    teachers = [some_adapter(tiny_base.layout, {"base": 1, name: 1}, rank=2, seed=i) for i, name in enumerate(names)]
    phase, asked = phase_of(student, teachers, config=DSCConfig(steps=1, pool=6)), []
    phase.prompts = lambda _generator, earlier: asked.append(earlier) or ["a <new>", "a mug", f"a <{earlier}>"]  # type: ignore[func-returns-value]
    phase.begin(None)
    assert len(phase.pool) == 6
    assert sorted(asked) == sorted(names * 2)


def test_teachers_are_asked_once_for_the_pool_and_a_step_asks_the_student_for_three(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    phase, rows = phase_of(student, [some_adapter(tiny_base.layout, {"fox": 1}, rank=2)]), []
    handle = tiny_base.unet.register_forward_hook(lambda _m, arguments, _out: rows.append(len(arguments[0])))
    try:
        phase.begin(None)
        asked, rows[:] = list(rows), []
        phase.loss(0)
        phase.loss(1)
    finally:
        handle.remove()
    assert asked == [6, 6] * 3  # two teachers, three conditionals of two pictures, a pool of three
    assert rows == [6, 6]


def test_the_first_teacher_is_what_training_made_even_after_a_resumption(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    phase = phase_of(student, [some_adapter(tiny_base.layout, {"fox": 1}, rank=2)])
    phase.begin(None)
    kept = {key: value.clone() for key, value in phase.state().items()}
    with torch.no_grad():
        student.up_KR.add_(1.0)
    resumed = phase_of(student, phase.teachers)  # type: ignore[arg-type]
    resumed.begin(kept)
    for before, after in zip(phase.pool, resumed.pool, strict=True):
        assert torch.equal(before.first.errors_SP, after.first.errors_SP)
        assert torch.equal(before.trial.noisy_SCHW, after.trial.noisy_SCHW)


@pytest.mark.parametrize("change", [{"steps": 0}, {"pool": 0}, {"warmup": -1}, {"lr": 0.0}, {"lr": float("nan")}])
def test_a_setting_that_cannot_work_is_refused_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^DSC: "):
        DSCConfig(**change)
