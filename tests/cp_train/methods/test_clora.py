"""C-LoRA: the penalty by hand, what a stack of LoRAs draws, and the collapse of the shared form."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cp_train.methods import Memory
from cp_train.methods.clora import CLoRA, StackedStudent, dense
from cp_train.methods.clora_shared import CLoRAShared
from cp_train.student import Student
from services.adapter import Adapter, new_adapter
from services.base_model import BaseModel
from services.conditioning import condition
from services.manifest import Concept
from tests.bases import some_adapter
from tests.cp_train.learning import learned

TOKEN = {"fox": torch.zeros(1, 2)}


@pytest.mark.parametrize("kind", [CLoRA, CLoRAShared])
def test_the_penalty_by_hand(kind: type[CLoRA]) -> None:
    # Past delta: (1, -2) and (3, -6); new delta: (4, 5) and (0, 0).
    parent = Adapter(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[1.0], [3.0]]), 1.0, TOKEN)
    weights = (torch.tensor([[[4.0, 5.0]]]), torch.tensor([[1.0], [0.0]]))
    student: Any = SimpleNamespace(weights=weights, base=SimpleNamespace(layout=SimpleNamespace(widths=[2])))
    penalty = kind(Memory(parent, None), weight=0.5).penalty(student)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * ((1 * 4) ** 2 + (2 * 5) ** 2))


def test_the_dense_delta_is_the_product_of_every_layers_factors(tiny_base: BaseModel) -> None:
    adapter = some_adapter(tiny_base.layout, {})
    found = dense(adapter.down_PRD, adapter.up_KR, tiny_base.layout.widths)
    assert found.shape == tiny_base.weight_KD.shape
    last = tiny_base.layout.widths[-1]
    torch.testing.assert_close(found[-last:], adapter.up_KR[-last:] @ adapter.down_PRD[-1])


def test_a_new_lora_beside_the_old_one_changes_nothing_at_first_and_adds_to_it(any_base: BaseModel) -> None:
    parent = some_adapter(any_base.layout, {"fox": 1}, rank=2, alpha=1.0)
    student = StackedStudent(any_base, parent, Concept(name="new", noun="mug"), seed=3)
    assert [weight.shape[1] for weight in student.weights] == [2, 2]
    prompts = ["a photo of a <fox>"]
    start = condition(any_base, prompts, student.adapter())
    torch.testing.assert_close(start, condition(any_base, prompts, parent))
    with torch.no_grad():
        student.up_KR.add_(0.1)
    grown = student.adapter()
    assert (grown.rank, grown.scale) == (4, parent.scale)
    own = Adapter(student.down_PRD.detach(), student.up_KR.detach(), 1.0, parent.tokens)
    base = condition(any_base, prompts, Adapter(own.down_PRD, 0 * own.up_KR, 1.0, parent.tokens))
    expected = condition(any_base, prompts, parent) + condition(any_base, prompts, own) - base
    torch.testing.assert_close(condition(any_base, prompts, grown), expected, rtol=1e-4, atol=1e-4)
    third = StackedStudent(
        any_base,
        Adapter(grown.down_PRD, grown.up_KR, grown.alpha, {"a": TOKEN["fox"], "b": TOKEN["fox"]}),
        Concept(name="c", noun=""),
        seed=0,
    )
    assert third.adapter().rank == 6


def test_the_first_lora_of_a_stack_has_the_rank_asked_for(tiny_base: BaseModel) -> None:
    student = StackedStudent(tiny_base, new_adapter(tiny_base.layout, rank=3), Concept(name="a", noun="mug"), seed=0)
    assert student.adapter().rank == 3
    plain = Student(tiny_base, new_adapter(tiny_base.layout, rank=3), Concept(name="a", noun="mug"), seed=0)
    assert all(map(torch.equal, student.weights, plain.weights)), "the first task is that of every method"


def test_the_past_is_multiplied_out_once_a_task() -> None:
    parent = Adapter(torch.ones(1, 1, 2), torch.ones(2, 1), 1.0, TOKEN)
    student: Any = SimpleNamespace(
        weights=(torch.ones(1, 1, 2), torch.ones(2, 1)), base=SimpleNamespace(layout=SimpleNamespace(widths=[2]))
    )
    method = CLoRA(Memory(parent, None), weight=1.0)
    first = method.penalty(student)
    past = method._past_KD
    student.weights = (torch.zeros(1, 1, 2), torch.ones(2, 1))
    assert method.penalty(student) == 0
    assert first == 4
    assert method._past_KD is past


def norm(student: Student) -> float:
    """L1 norm of the delta."""
    adapter = student.adapter()
    return dense(adapter.down_PRD, adapter.up_KR, student.base.layout.widths).abs().sum().item()


def test_the_shared_form_collapses_in_the_second_task_and_finetuning_does_not(tiny_base: BaseModel) -> None:
    first = learned(tiny_base, "finetune", new_adapter(tiny_base.layout, rank=2), "one", steps=30)
    before = norm(first)
    after = {
        m: norm(learned(tiny_base, m, first.adapter(), "two", steps=30, weight=1e4))
        for m in ("clora_shared", "finetune")
    }
    assert before > 0
    assert after["clora_shared"] < 0.5 * before
    assert after["finetune"] > 0.8 * before
