"""What a job decides: the prompts that are scored, and the settings that are recorded."""

import json
import pickle
from typing import Any

import pytest
import torch

from cp_train.fisher import FisherConfig
from cp_train.methods.kv import KVConfig
from cp_train.plan import LearningConfig, Plan
from services.base_model import BaseModel
from tests.bases import plan_of

TEMPLATES = ("a photo of a {}", "{} on grass")


def plan(base: BaseModel, earlier: int, *, k: int = 5) -> Plan:
    config = LearningConfig(method="ewc_dc", templates=TEMPLATES, fisher=FisherConfig(earlier=k))
    return plan_of(base, config, earlier=earlier)


def test_the_scored_prompts_are_the_concept_then_its_noun_then_earlier_ones_in_one_template(
    tiny_base: BaseModel,
) -> None:
    forms = set()
    for seed in range(40):
        current, prior, *others = plan(tiny_base, 2).scored_prompts(torch.Generator().manual_seed(seed))
        form = current.replace("<my-mug>", "{}").replace("{} mug", "{} noun")
        forms.add(form)
        assert prior == form.replace("{} noun", "{}").replace("{}", "mug")
        expected = {form.replace("{}", f"<{name}>").replace("noun", f"noun{name}") for name in ("c0", "c1")}
        assert set(others) == expected
    assert forms == {"a photo of a {}", "a photo of a {} noun", "{} on grass", "{} noun on grass"}


@pytest.mark.parametrize(("earlier", "k", "expected"), [(0, 5, 0), (3, 5, 3), (9, 5, 5), (9, 2, 2), (4, 0, 0)])
def test_at_most_k_earlier_concepts_are_scored(tiny_base: BaseModel, earlier: int, k: int, expected: int) -> None:
    found = plan(tiny_base, earlier, k=k).scored_prompts(torch.Generator().manual_seed(0))
    assert len(found) == len(set(found)) == 2 + expected


def test_every_earlier_concept_gets_its_turn(tiny_base: BaseModel) -> None:
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        seen |= set(plan(tiny_base, 9, k=2).scored_prompts(generator)[2:])
    assert len({prompt.partition("<")[2].partition(">")[0] for prompt in seen}) == 9


def test_the_concepts_of_the_version_to_be_stand_in_the_order_learned(tiny_base: BaseModel) -> None:
    assert [concept.name for concept in plan(tiny_base, 3).concepts] == ["c0", "c1", "c2", "my-mug"]


def test_a_plan_can_be_sent_to_workers(tiny_base: BaseModel) -> None:
    sent = pickle.loads(pickle.dumps(plan(tiny_base, 1)))  # noqa: S301
    assert sent.concepts == plan(tiny_base, 1).concepts
    assert torch.equal(sent.parent.up_KR, plan(tiny_base, 1).parent.up_KR)


def test_the_settings_are_one_level_of_plain_values() -> None:
    flat = LearningConfig(method="ewc").flat()
    assert flat["method"] == "ewc"
    assert flat["loop.steps"] == 400
    assert flat["fisher.beta"] == 0.5
    assert flat["templates"] == ["a photo of a {}", "a {}", "a picture of a {}", "{}"]
    assert json.loads(json.dumps(flat)) == flat
    assert not any(isinstance(value, dict) for value in flat.values())


def test_only_settings_that_the_method_reads_are_recorded() -> None:
    def parts(method: str) -> set[str]:
        return {key.partition(".")[0] for key in LearningConfig.for_method(method).flat() if "." in key}

    assert parts("ewc_dc") == {"loop", "fisher"}
    assert parts("kv") == {"loop", "fisher", "kv"}
    assert parts("dsc_ewc_dc_kv") == {"loop", "fisher", "kv", "dsc"}


def test_a_method_brings_its_own_lambda_and_contrast() -> None:
    assert LearningConfig.for_method("ewc_dc").weight == 0.1
    assert LearningConfig.for_method("clora_shared").weight == 100
    assert LearningConfig.for_method("ewc_dc", weight=0.0).weight == 0.0
    assert LearningConfig.for_method("finetune", weight=7.0).weight == 0.0  # it has no penalty: the same settings
    assert LearningConfig.for_method("ewc").fisher.contrast == 0.0
    assert LearningConfig.for_method("ewc_dc", fisher=FisherConfig(contrast=0.3)).fisher.contrast == 0.3


def test_the_distilled_prompts_are_the_concept_its_noun_and_one_earlier_concept(tiny_base: BaseModel) -> None:
    for seed in range(8):
        current, prior, other = plan(tiny_base, 3).distilled_prompts(torch.Generator().manual_seed(seed), "c1")
        assert "<my-mug>" in current
        assert prior in {"a photo of a mug", "mug on grass"}
        assert other == current.replace("my-mug", "c1").replace("> mug", "> nounc1")


def test_protected_prompts_name_every_earlier_concept_and_never_the_new_one(tiny_base: BaseModel) -> None:
    config = LearningConfig(method="kv", templates=TEMPLATES, kv=KVConfig(prompts=64, generic=0.25))
    captions, own = plan_of(tiny_base, config, earlier=3).protected_prompts()
    assert (len(captions), len(own)) == (16, 48)
    assert [sum(f"<c{index}>" in prompt for prompt in own) for index in range(3)] == [16, 16, 16]
    assert not any("my-mug" in prompt for prompt in own)
    assert {f.format("<c1>") for f in TEMPLATES} <= set(own)
    assert (captions, own) == plan_of(tiny_base, config, earlier=3).protected_prompts()
    assert "" in captions
    assert not any("<" in prompt for prompt in captions)
    assert plan_of(tiny_base, config).protected_prompts() == (captions, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 0}, "rank must be from 1 to 1024"),
        ({"rank": 1025}, "rank must be from 1 to 1024"),
        ({"weight": -0.1}, "weight must be at least 0"),
        ({"weight": float("nan")}, "weight must be at least 0"),
        ({"crops": -1}, "crops must be at least 0"),
        ({"templates": ()}, "every template needs one {}"),
        ({"templates": ("a photo",)}, "every template needs one {}"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LearningConfig(method="ewc", **change)
