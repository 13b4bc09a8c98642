"""Full deltas and their merge: the closed form against its own conditions and against gradient descent."""

import pytest
import torch

from cp_train.methods.custom_diffusion import (
    CustomDiffusionMerge,
    FullStudent,
    concept_features,
    full_adapter,
    merged_delta,
)
from services.adapter import new_adapter
from services.base_model import BaseModel
from services.conditioning import condition, tokenize
from services.manifest import Concept
from tests.bases import some_adapter
from tests.cp_train.learning import learned


def test_the_merge_by_hand() -> None:
    # The constraint asks for 1 along (1, 0); C_reg weighs the first axis 4 and the second 1 and does not mix them.
    weight, features, targets = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]])
    regular = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(merged_delta(weight, features, targets, regular, ridge=0.0), torch.tensor([[1.0, 0.0]]))
    # Along (1, 1) the cheap axis takes what the dear one would: in the ratio 4 to 1.
    slanted = merged_delta(weight, torch.tensor([[1.0, 1.0]]), targets, regular, ridge=0.0)
    torch.testing.assert_close(slanted, torch.tensor([[0.2, 0.8]]))


def test_the_merge_meets_its_constraints_and_nothing_that_does_moves_captions_less() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, features, targets, regular = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (2, 6), (2, 4), (30, 6))
    )
    found = merged_delta(weight, features, targets, regular, ridge=0.0)
    torch.testing.assert_close((weight + found) @ features.T, targets.T)
    # Any other solution differs by something that is zero on the constraints.
    null = torch.eye(6).double() - torch.linalg.pinv(features) @ features
    for _ in range(5):
        other = found + 0.1 * torch.randn(4, 6, generator=generator, dtype=torch.float64) @ null
        assert (other @ regular.T).norm() > (found @ regular.T).norm()


def test_a_full_delta_is_an_adapter_of_the_text_width(any_base: BaseModel) -> None:
    student = FullStudent(any_base, new_adapter(any_base.layout, rank=2), Concept(name="new", noun="mug"), seed=0)
    assert len(student.weights) == 1
    prompts = ["a photo of a mug"]
    base = condition(any_base, prompts, None)
    torch.testing.assert_close(condition(any_base, prompts, student.adapter()), base)
    with torch.no_grad():
        student.delta_KD.copy_(any_base.weight_KD)
    torch.testing.assert_close(condition(any_base, prompts, student.adapter()), 2 * base, rtol=1e-4, atol=1e-5)
    again = FullStudent(any_base, student.adapter(), Concept(name="next", noun="mug"), seed=0)
    assert torch.equal(again.delta_KD, student.delta_KD)


def test_merging_one_concept_gives_its_own_keys_and_values_at_its_tokens(tiny_base: BaseModel) -> None:
    adapter = some_adapter(tiny_base.layout, {"fox": 1})
    model = CustomDiffusionMerge.model(tiny_base, {"fox": adapter})
    prompt = ["a photo of a <fox>"]
    own, merged, plain = (
        condition(tiny_base, prompt, a)
        for a in (adapter, model, full_adapter(tiny_base, 0 * model.up_KR, adapter.tokens))
    )
    features, targets = concept_features(tiny_base, "fox", adapter)
    first = tokenize(tiny_base, prompt[0], {"fox": 1}).concepts[0][0]
    place = slice(first, first + len(features))
    torch.testing.assert_close(own[0, place], targets, rtol=1e-4, atol=1e-4)
    gap = [(found[0, place] - targets).norm() for found in (merged, plain)]
    assert gap[0] < 0.05 * gap[1]
    away = [condition(tiny_base, ["a big house"], a) for a in (model, adapter, None)]
    assert (away[0] - away[2]).norm() < 0.5 * (away[1] - away[2]).norm()


def test_training_moves_the_full_delta(tiny_base: BaseModel) -> None:
    student = learned(tiny_base, "custom_diffusion", new_adapter(tiny_base.layout, rank=2), "one", steps=2)
    assert student.adapter().rank == tiny_base.layout.text_width
    assert student.adapter().up_KR.abs().max() > 0


@pytest.mark.parametrize("concepts", [2, 3])
def test_a_merge_knows_every_concept(tiny_base: BaseModel, concepts: int) -> None:
    adapters = {f"c{i}": some_adapter(tiny_base.layout, {f"c{i}": 1}, seed=i) for i in range(concepts)}
    model = CustomDiffusionMerge.model(tiny_base, adapters)
    assert list(model.tokens) == list(adapters)
    assert torch.isfinite(model.up_KR).all()
