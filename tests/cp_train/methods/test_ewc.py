"""The EWC penalty against numbers worked out by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cp_train.methods import METHODS, Memory
from cp_train.methods.dsc_ewc_dc import DSCEWCDC
from cp_train.methods.ewc import EWC
from cp_train.methods.ewc_dc import EWCDC
from cp_train.methods.finetune import Finetune
from services.adapter import Adapter, TrainingState

PARENT = Adapter(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[3.0], [4.0]]), 1.0, {})
FISHER = TrainingState(torch.tensor([[[0.5, 2.0]]]), torch.tensor([[0.0], [10.0]]))


def student() -> Any:
    """Moved away from its parent by (1, -1) in A and (5, 0.1) in B."""
    down = torch.tensor([[[2.0, 1.0]]], requires_grad=True)
    up = torch.tensor([[8.0], [4.1]], requires_grad=True)
    return SimpleNamespace(weights=(down, up), start=(PARENT.down_PRD, PARENT.up_KR))


@pytest.mark.parametrize("method", [EWC, EWCDC, DSCEWCDC])
def test_the_penalty_and_its_gradient_by_hand(method: type[EWC]) -> None:
    moved = student()
    penalty = method(Memory(PARENT, FISHER), weight=0.4).penalty(moved)
    assert penalty is not None
    # 0.4 / 2 * (0.5 * 1 + 2 * 1 + 0 * 25 + 10 * 0.01)
    assert penalty.item() == pytest.approx(0.52, rel=1e-5)
    penalty.backward()
    assert moved.weights[0].grad.flatten().tolist() == pytest.approx([0.4 * 0.5 * 1, 0.4 * 2 * -1], rel=1e-5)
    assert moved.weights[1].grad.flatten().tolist() == pytest.approx([0.0, 0.4 * 10 * 0.1], rel=1e-4)


def test_where_the_parent_stands_the_penalty_is_nothing() -> None:
    start = (PARENT.down_PRD, PARENT.up_KR)
    penalty = EWC(Memory(PARENT, FISHER), weight=0.4).penalty(SimpleNamespace(weights=start, start=start))  # type: ignore[arg-type]
    assert penalty is not None
    assert penalty.item() == 0


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.protects])
def test_the_first_task_has_no_penalty(name: str) -> None:
    assert METHODS[name](Memory(PARENT, None), weight=0.4).penalty(student()) is None


def test_finetuning_never_has_one() -> None:
    assert Finetune(Memory(PARENT, FISHER), weight=0.4).penalty(student()) is None
