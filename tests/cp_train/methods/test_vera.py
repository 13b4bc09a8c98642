"""VeRA: the same random factors everywhere, and weights that survive the way through an adapter."""

import math

import torch
from peft.tuners.vera.model import _kaiming_init

from cp_train.methods.base import Memory
from cp_train.methods.ewc_dc import EWCDC
from cp_train.methods.vera import START, EWCDCVera, VeraStudent, frozen_factors
from services.adapter import TrainingState, new_adapter
from services.base_model import BaseModel
from services.conditioning import condition
from services.manifest import Concept
from tests.cp_train.learning import learned

CONCEPT = Concept(name="new", noun="mug")


def test_layers_of_a_shape_share_their_frozen_factors(any_base: BaseModel) -> None:
    layout = any_base.layout
    down_RD, up_KR = frozen_factors(layout, 5)
    assert down_RD.shape == (5, layout.text_width)
    of_width: dict[int, torch.Tensor] = {}
    for width, up in zip(layout.widths, up_KR.split(layout.widths), strict=True):
        assert torch.equal(up, of_width.setdefault(width, up))
    assert 0.5 < down_RD.abs().max() / math.sqrt(6 / layout.text_width) <= 1
    assert 0.5 < up_KR.abs().max() / math.sqrt(6 / 5) <= 1
    assert torch.equal(frozen_factors(layout, 5)[1], up_KR)


def test_the_frozen_factors_are_spread_as_pefts(any_base: BaseModel) -> None:
    down_RD, up_KR = frozen_factors(any_base.layout, 64)
    for ours in (down_RD, up_KR):
        theirs = _kaiming_init(tuple(ours.shape), torch.Generator().manual_seed(0))
        assert 0.95 < ours.std() / theirs.std() < 1.05


def test_a_fresh_one_changes_nothing_and_trains_two_vectors_a_layer(tiny_base: BaseModel) -> None:
    layout = tiny_base.layout
    student = VeraStudent(tiny_base, new_adapter(layout, rank=3), CONCEPT, seed=0)
    assert [weight.shape for weight in student.weights] == [(len(layout.projections), 3), (layout.total,)]
    assert (student.d_PR == START).all()
    prompts = ["a photo of a mug"]
    torch.testing.assert_close(condition(tiny_base, prompts, student.adapter()), condition(tiny_base, prompts, None))


def test_the_factors_by_hand(tiny_base: BaseModel) -> None:
    student = VeraStudent(tiny_base, new_adapter(tiny_base.layout, rank=3), CONCEPT, seed=0)
    with torch.no_grad():
        student.d_PR.copy_(torch.arange(student.d_PR.numel()).view_as(student.d_PR))
        student.b_K.fill_(2.0)
    down_RD, up_KR = frozen_factors(tiny_base.layout, 3)
    down, up = student.factors()
    torch.testing.assert_close(down[1, 2], 5 * down_RD[2])
    torch.testing.assert_close(up, 2 * up_KR)


def test_the_next_task_reads_the_weights_off_the_adapter(tiny_base: BaseModel) -> None:
    first = learned(tiny_base, "finetune_vera", new_adapter(tiny_base.layout, rank=3), "one", steps=3)
    second = VeraStudent(tiny_base, first.adapter(), CONCEPT, seed=0)
    assert not (first.d_PR == START).all()
    for before, after in zip(first.weights, second.weights, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-7)


def test_ewc_penalizes_the_vectors(tiny_base: BaseModel) -> None:
    parent = learned(tiny_base, "finetune_vera", new_adapter(tiny_base.layout, rank=3), "one", steps=1).adapter()
    student = VeraStudent(tiny_base, parent, CONCEPT, seed=0)
    fisher = TrainingState(torch.ones_like(student.d_PR), torch.full_like(student.b_K, 3.0))
    with torch.no_grad():
        student.b_K.add_(1.0)
    penalty = EWCDCVera(Memory(parent, fisher), weight=2.0).penalty(student)
    assert penalty is not None
    torch.testing.assert_close(penalty, torch.tensor(3.0 * tiny_base.layout.total))
    assert EWCDCVera.penalty is EWCDC.penalty
