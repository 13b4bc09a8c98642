"""The gate: what is sound passes, and what is not is refused with every reason."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cp_train.evaluation.gate import FLAT, judge
from services.adapter import Layout, Projection, TrainingState
from services.lineage import Verdict
from tests.bases import some_adapter

LAYOUT = Layout((Projection("mid.attn2.to_k", 6), Projection("mid.attn2.to_v", 4)), text_width=8)
ADAPTER = some_adapter(LAYOUT, {"mug": 1, "fox": 1})
FISHER = TrainingState(ADAPTER.down_PRD.square(), ADAPTER.up_KR.square())
NAMES = ["mug", "fox"]


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, 8, 8, 3), generator=generator, dtype=torch.uint8)


def test_a_sound_version_passes() -> None:
    assert judge(ADAPTER, FISHER, pictures(), NAMES) == Verdict(passed=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["down_PRD", "up_KR", "tokens"])
def test_an_adapter_with_numbers_that_are_not_finite_is_refused(part: str, value: float) -> None:
    cases = {
        "down_PRD": replace(ADAPTER, down_PRD=torch.full_like(ADAPTER.down_PRD, value)),
        "up_KR": replace(ADAPTER, up_KR=torch.full_like(ADAPTER.up_KR, value)),
        "tokens": replace(ADAPTER, tokens={"mug": torch.full((1, 8), value)}),
    }
    verdict = judge(cases[part], FISHER, pictures(), NAMES)
    assert verdict == Verdict(passed=False, reasons=("the adapter holds numbers that are not finite",))


def test_a_fisher_information_that_nothing_could_be_learned_on_is_refused() -> None:
    spoiled = replace(FISHER, up_KR=torch.full_like(FISHER.up_KR, torch.nan))
    verdict = judge(ADAPTER, spoiled, pictures(), NAMES)
    assert verdict == Verdict(passed=False, reasons=("its Fisher information holds numbers that are not finite",))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (250, 20, 90)])
def test_one_picture_of_one_colour_is_enough_to_be_refused(colour: tuple[int, int, int]) -> None:
    drawn = pictures()
    drawn[1, 2] = torch.tensor(colour)
    verdict = judge(ADAPTER, FISHER, drawn, NAMES)
    assert verdict == Verdict(passed=False, reasons=("<fox> draws empty pictures",))


def test_nearly_flat_is_flat_and_one_lively_channel_is_a_picture() -> None:
    drawn = pictures()
    drawn[0] = 128
    drawn[0, :, :4, :, 1] += int(FLAT)
    assert not judge(ADAPTER, FISHER, drawn, NAMES).passed
    drawn[0, :, :4, :, 1] += 3 * int(FLAT)
    assert judge(ADAPTER, FISHER, drawn, NAMES).passed


def test_all_reasons_are_told() -> None:
    spoiled = replace(ADAPTER, up_KR=torch.full_like(ADAPTER.up_KR, torch.nan))
    verdict = judge(spoiled, FISHER, torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8), NAMES)
    assert [reason.partition(" ")[0] for reason in verdict.reasons] == ["the", "<mug>", "<fox>"]
