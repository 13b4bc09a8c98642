"""The gate: what is sound and has forgotten nothing passes; what is not is refused with every reason."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cp_train.evaluation.evidence import Drift, Evidence
from cp_train.evaluation.gate import FLAT, Limits, judge, unsound
from services.adapter import Layout, Projection, TrainingState
from services.lineage import Verdict
from services.settings import Settings
from tests.bases import some_adapter

LAYOUT = Layout((Projection("mid.attn2.to_k", 6), Projection("mid.attn2.to_v", 4)), text_width=8)
ADAPTER = some_adapter(LAYOUT, {"mug": 1, "fox": 1})
FISHER = TrainingState(ADAPTER.down_PRD.square(), ADAPTER.up_KR.square())
NAMES = ["mug", "fox"]
LIMITS = Limits.of(Settings())
SAME = Drift(mmd=0.0, similarity=1.0)
GOOD = Evidence(
    kv={"mug": 0.01, "fox": 0.0},
    base_kv=0.0,
    drift={"mug": SAME, "fox": SAME},
    dc_drop={"mug": 0.0, "fox": 0.0},
    dc_accuracy={"mug": 1.0, "fox": 1.0},
    base=SAME,
    new_similarity=1.0,
    new_loss=0.5,
)


def pictures() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, (2, 3, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return dict(zip(NAMES, drawn, strict=True))


def test_a_sound_version_passes() -> None:
    assert unsound(ADAPTER, FISHER, pictures(), {}) == []
    assert judge(GOOD, LIMITS, "cup") == Verdict(passed=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["down_PRD", "up_KR", "tokens"])
def test_an_adapter_with_numbers_that_are_not_finite_is_refused(part: str, value: float) -> None:
    cases = {
        "down_PRD": replace(ADAPTER, down_PRD=torch.full_like(ADAPTER.down_PRD, value)),
        "up_KR": replace(ADAPTER, up_KR=torch.full_like(ADAPTER.up_KR, value)),
        "tokens": replace(ADAPTER, tokens={"mug": torch.full((1, 8), value)}),
    }
    reasons = unsound(cases[part], FISHER, pictures(), {})
    assert reasons == ["the adapter holds numbers that are not finite"]


def test_a_fisher_information_that_nothing_could_be_learned_on_is_refused() -> None:
    spoiled = replace(FISHER, up_KR=torch.full_like(FISHER.up_KR, torch.nan))
    reasons = unsound(ADAPTER, spoiled, pictures(), {})
    assert reasons == ["its Fisher information holds numbers that are not finite"]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (250, 20, 90)])
def test_one_picture_of_one_colour_is_enough_to_be_refused(colour: tuple[int, int, int]) -> None:
    drawn = pictures()
    drawn["fox"][2] = torch.tensor(colour)
    reasons = unsound(ADAPTER, FISHER, drawn, {})
    assert reasons == ["<fox> draws empty pictures"]


def test_nearly_flat_is_flat_and_one_lively_channel_is_a_picture() -> None:
    drawn = pictures()
    drawn["mug"][:] = 128
    drawn["mug"][:, :4, :, 1] += int(FLAT)
    assert unsound(ADAPTER, FISHER, drawn, {})
    drawn["mug"][:, :4, :, 1] += 3 * int(FLAT)
    assert not unsound(ADAPTER, FISHER, drawn, {})


def test_what_the_parent_drew_in_one_colour_already_is_no_reason_against_its_child() -> None:
    white = torch.full((3, 8, 8, 3), 255, dtype=torch.uint8)
    lively = pictures()
    emptied = {"mug": white, "fox": white, "cup": lively["mug"]}
    assert unsound(ADAPTER, FISHER, emptied, {"mug": white, "fox": lively["fox"]}) == ["<fox> draws empty pictures"]
    assert unsound(ADAPTER, FISHER, emptied | {"cup": white}, {"mug": white, "fox": white}) == [
        "<cup> draws empty pictures"
    ], "a new concept has no parent"


def test_all_reasons_are_told() -> None:
    spoiled = replace(ADAPTER, up_KR=torch.full_like(ADAPTER.up_KR, torch.nan))
    black = dict.fromkeys(NAMES, torch.zeros(3, 8, 8, 3, dtype=torch.uint8))
    reasons = unsound(spoiled, FISHER, black, {})
    assert [reason.partition(" ")[0] for reason in reasons] == ["the", "<mug>", "<fox>"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        ({"kv": {"mug": 0.0, "fox": 9.0}}, "<fox> changed: keys and values by 9, at most"),
        ({"base_kv": NAN}, "the base's own knowledge changed: keys and values by nan, at most"),
        ({"drift": {"mug": SAME, "fox": Drift(mmd=9e3, similarity=1.0)}}, "<fox> changed: MMD 9e+03, at most"),
        ({"drift": {"mug": SAME, "fox": Drift(mmd=0.0, similarity=0.01)}}, "<fox> changed: similarity 0.01, at least"),
        ({"drift": {"mug": SAME, "fox": Drift(mmd=0.0, similarity=NAN)}}, "<fox> changed: similarity nan, at least"),
        ({"dc_drop": {"mug": 1.0, "fox": 0.0}}, "<mug> is told apart less well: accuracy lost 1, at most"),
        ({"base": Drift(mmd=9e4, similarity=1.0)}, "the base's own knowledge changed: MMD 9e+04, at most"),
        ({"base": Drift(mmd=0.0, similarity=0.01)}, "the base's own knowledge changed: similarity 0.01, at least"),
        ({"new_similarity": 0.01}, "<cup> is unlike its images: similarity 0.01, at least"),
        ({"new_loss": 2.0}, "<cup> was not learned: relative error 2, at most"),
    ],
)
def test_each_figure_has_its_limit(spoiled: dict[str, Any], reason: str) -> None:
    verdict = judge(replace(GOOD, **spoiled), LIMITS, "cup")
    assert not verdict.passed
    assert [found.startswith(reason) for found in verdict.reasons] == [True]


def test_the_figures_are_metrics_of_one_level() -> None:
    metrics = GOOD.metrics()
    assert metrics["drift.mug.kv"] == 0.01
    assert {"drift.fox.mmd", "drift.fox.similarity", "drift.fox.dc_accuracy", "drift.fox.dc_drop"} <= metrics.keys()
    assert {"base_drift.mmd", "base_drift.similarity", "new.similarity", "new.loss"} <= metrics.keys()
