"""Second moments and their penalty, against the plain mean over prompts and by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from cp_train.methods import Memory
from cp_train.methods.composed import EWCDCKV
from cp_train.methods.ewc_dc import EWCDC
from cp_train.methods.kv import KV, KVConfig, moved, protect, second_moments, stretch
from services.adapter import Adapter, Layout, Projection, TrainingState
from services.base_model import BaseModel
from services.conditioning import embed, project
from tests.bases import some_adapter, student_of

PROMPTS = ["a photo of a <fox>", "a painting of a red <fox> in a field", "a dog", ""]
LAYOUT = Layout((Projection("k", 1), Projection("v", 1)), 2)


def by_hand() -> tuple[Any, Adapter]:
    """Two projections of width 1 on a text width of 2, rank 1: D = (1, 0) in the first, (0, 2) in the second."""
    parent = Adapter(torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]]), torch.tensor([[1.0], [1.0]]), 1.0, {})
    down, up = torch.tensor([[[2.0, 1.0]], [[0.0, 1.0]]]), torch.tensor([[1.0], [3.0]])
    return SimpleNamespace(factors=lambda: (down, up), scale=1.0, base=SimpleNamespace(layout=LAYOUT)), parent


def test_second_moments_by_hand() -> None:
    base: Any = SimpleNamespace(layout=LAYOUT, weight_KD=torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    # W e: 3 and 2 for the first token, 1 and 2 for the second.
    found = second_moments(base, [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])])
    first = [[1 / 9 + 1, 2 / 9], [2 / 9, 4 / 9]]
    second = [[1 / 4 + 1 / 4, 2 / 4], [2 / 4, 4 / 4]]
    torch.testing.assert_close(found, torch.tensor([first, second]) / 2)


def test_the_penalty_by_hand() -> None:
    student, parent = by_hand()
    moments = torch.tensor([[[3.0, 9.0], [9.0, 5.0]], [[7.0, 9.0], [9.0, 0.5]]])
    # tr(D M D^T): 1 * 3 and 2 * 2 * 0.5.
    assert moved(student, parent, moments).item() == pytest.approx((3 + 2) / 2)
    assert KV(Memory(parent, None, moments), kv_weight=4.0).penalty(student).item() == pytest.approx(10)  # type: ignore[union-attr]


def test_the_closed_form_is_the_mean_over_layers_prompts_and_tokens(any_base: BaseModel) -> None:
    student = student_of(any_base, earlier=("fox",))
    parent = some_adapter(any_base.layout, {"fox": 1}, rank=2, seed=7)
    prompts = student.tokenize(PROMPTS)
    found = moved(student, parent, protect(any_base, prompts, parent))
    with torch.no_grad():
        context = embed(any_base, prompts, parent.tokens)
        widths = any_base.layout.widths
        change = (student(context) - project(any_base, context, parent.down_PRD, parent.up_KR, parent.scale)).split(
            widths, -1
        )
        size = functional.linear(context, any_base.weight_KD).split(widths, -1)
    ratios = [(c.square().sum(-1) / s.square().sum(-1)).mean() for c, s in zip(change, size, strict=True)]
    torch.testing.assert_close(found, torch.stack(ratios).mean(), rtol=1e-3, atol=1e-6)


def test_at_the_parent_it_is_exactly_nothing_and_has_no_slope(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    moments = protect(tiny_base, student.tokenize(PROMPTS), student.adapter())
    penalty = moved(student, student.adapter(), moments)
    penalty.backward()
    assert penalty.item() == 0
    assert not any(weight.grad.any() for weight in student.weights if weight.grad is not None)


def test_a_change_that_protected_prompts_do_not_see_costs_nothing(tiny_base: BaseModel) -> None:
    student, parent = by_hand()
    seen_only_second = torch.tensor([[[0.0, 0.0], [0.0, 5.0]], [[7.0, 0.0], [0.0, 0.0]]])
    assert moved(student, parent, seen_only_second).item() == 0


def test_composed_penalties_add_each_with_its_own_weight(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    parent = student.adapter()
    with torch.no_grad():
        student.up_KR.add_(0.1)
    fisher = TrainingState(torch.ones_like(parent.down_PRD), torch.full_like(parent.up_KR, 2.0))
    memory = Memory(parent, fisher, protect(tiny_base, student.tokenize(PROMPTS), parent))
    both, kv, ewc = (kind(memory, weight=0.3, kv_weight=5.0).penalty(student) for kind in (EWCDCKV, KV, EWCDC))
    assert both is not None
    assert kv is not None
    assert ewc is not None
    torch.testing.assert_close(both, kv + ewc)
    assert min(kv.item(), ewc.item()) > 0


def test_coordinates_are_stretched_where_no_protected_prompt_is() -> None:
    # Eigenvalues 3 and 1 (mean 2) along the axes, then along the diagonals.
    along, across = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    steep, flat = 1 / (1.5 + 0.1), 1 / (0.5 + 0.1)
    half, rest = (steep + flat) / 2, (steep - flat) / 2
    expected = torch.tensor([[[steep, 0.0], [0.0, flat]], [[half, rest], [rest, half]]])
    torch.testing.assert_close(stretch(torch.stack([along, across]), 0.1), expected)
    nowhere = stretch(torch.zeros(1, 2, 2), 0.25)
    torch.testing.assert_close(nowhere, 4 * torch.eye(2).unsqueeze(0), msg="with nothing protected all are alike")


def test_the_coordinates_of_both_factors_are_symmetric_maps(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    moments = protect(tiny_base, student.tokenize(PROMPTS), student.adapter())
    memory = Memory(student.adapter(), None, moments)
    maps = KV(memory, kv_ridge=0.1).coordinates(student)
    assert [id(parameter) for parameter in maps] == [id(weight) for weight in student.weights]
    for weight, mapped in maps.items():
        x, y = torch.randn_like(weight), torch.randn_like(weight)
        torch.testing.assert_close((x * mapped(y)).sum(), (mapped(x) * y).sum(), rtol=1e-4, atol=1e-3)
        assert not torch.allclose(mapped(x), x, atol=0.1)
    assert KV(memory, kv_ridge=0.0).coordinates(student) == {}


def test_each_projection_is_stretched_by_its_own_moments_and_b_by_those_behind_a(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox",))
    moments = protect(tiny_base, student.tokenize(PROMPTS), student.adapter())
    parent, ridge = student.adapter(), 0.5
    along_down, along_up = KV(Memory(parent, None, moments), kv_ridge=ridge).coordinates(student).values()

    def solved(move: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
        shape = moment / (moment.trace() / len(moment)) + ridge * torch.eye(len(moment))
        return torch.linalg.solve(shape, move, left=False)

    down, up = torch.randn_like(student.down_PRD), torch.randn_like(student.up_KR)
    expected = [solved(a, m) for a, m in zip(down, moments, strict=True)]
    torch.testing.assert_close(along_down(down), torch.stack(expected), rtol=1e-3, atol=1e-4)
    behind = parent.down_PRD @ moments @ parent.down_PRD.transpose(1, 2)
    rows = up.split(tiny_base.layout.widths)
    expected = [solved(b, m) for b, m in zip(rows, behind, strict=True)]
    torch.testing.assert_close(along_up(up), torch.cat(expected), rtol=1e-3, atol=1e-4)


def test_in_these_coordinates_one_step_moves_protected_prompts_less(tiny_base: BaseModel) -> None:
    torch.manual_seed(0)
    student = student_of(tiny_base, earlier=("fox",))
    moments = protect(tiny_base, student.tokenize(PROMPTS), student.adapter())
    memory = Memory(student.adapter(), None, moments)
    mapped = KV(memory, kv_ridge=0.1).coordinates(student)[student.down_PRD]
    start, step = student.down_PRD.detach().clone(), torch.randn_like(student.down_PRD)

    def cost(move: torch.Tensor) -> float:
        with torch.no_grad():
            student.down_PRD.copy_(start + move * 1e-2 / move.norm())
            return moved(student, memory.parent, moments).item()

    assert cost(mapped(step)) < 0.2 * cost(step)


@pytest.mark.parametrize(
    "change",
    [{"weight": -1.0}, {"weight": float("inf")}, {"prompts": 0}, {"generic": 0.0}, {"generic": 1.5}, {"ridge": -0.1}],
)
def test_a_setting_that_cannot_work_is_refused_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^kv: "):
        KVConfig(**change)
