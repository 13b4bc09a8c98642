"""What the gate sees of a candidate, on tiny bases."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from cp_train.evaluation import evidence
from cp_train.evaluation.evidence import Evidence, Examination, draw_concepts
from cp_train.evaluation.features import LatentFeatures, gate_features
from cp_train.evaluation.gate import Limits, judge
from cp_train.evaluation.gate_check import shuffled
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition
from services.manifest import Concept
from services.settings import Settings
from tests.bases import random_latents, some_adapter

NEW = Concept(name="new", noun="mug")
SEEDS = (0, 1)
LIMITS = replace(Limits.of(Settings()), new_similarity=-1.0, new_loss=2.0)
"""A random base draws no concept: what it forgets is all that can be told."""


def parent_of(base: BaseModel, names: Sequence[str]) -> Adapter:
    full = some_adapter(base.layout, dict.fromkeys(names, 1))
    return replace(full, up_KR=0.2 * full.up_KR)


def nudged(base: BaseModel, parent: Adapter, by: float) -> Adapter:
    """A candidate on top of a parent: the new embedding, and up factors that changed by a share of their size."""
    generator = torch.Generator().manual_seed(1)
    change = by * parent.up_KR.std() * torch.randn(parent.up_KR.shape, generator=generator)
    row = 0.1 * torch.randn(1, base.layout.text_width, generator=generator)
    return replace(parent, up_KR=parent.up_KR + change, tokens={**parent.tokens, NEW.name: row})


def examination(base: BaseModel, parent: Adapter, candidate: Adapter) -> Examination:
    earlier = [Concept(name=name, noun="fox") for name in parent.tokens]
    return Examination(
        base=base,
        features=gate_features("auto", base),
        parent=parent,
        candidate=candidate,
        earlier=earlier,
        concept=NEW,
        latents_NCHW=random_latents(base, 2),
        seeds=SEEDS,
        tau=0.05,
    )


def evidence_of(base: BaseModel, parent: Adapter, candidate: Adapter) -> Evidence:
    found = examination(base, parent, candidate)
    return found.evidence(draw_concepts(base, candidate, [*found.judged, NEW], SEEDS))


def test_a_candidate_that_changed_nothing_has_not_drifted(any_base: BaseModel) -> None:
    parent = parent_of(any_base, ["a", "b"])
    found = evidence_of(any_base, parent, nudged(any_base, parent, 0.0))
    assert found.kv == {"a": 0.0, "b": 0.0}
    assert found.dc_drop == {"a": 0.0, "b": 0.0}
    for drift in (*found.drift.values(), found.base):
        assert drift.mmd == pytest.approx(0, abs=1e-3)
        assert drift.similarity == pytest.approx(1, abs=1e-4)


def test_a_small_change_passes_and_a_catastrophe_does_not(tiny_base: BaseModel) -> None:
    parent = parent_of(tiny_base, ["a", "b"])
    small, large = nudged(tiny_base, parent, 0.02), nudged(tiny_base, parent, 100.0)
    assert judge(evidence_of(tiny_base, parent, small), LIMITS, NEW.name).passed
    verdict = judge(evidence_of(tiny_base, parent, large), LIMITS, NEW.name)
    assert {reason.partition(" ")[0] for reason in verdict.reasons} >= {"<a>", "<b>", "the"}


def test_shuffling_keeps_every_number_and_moves_the_keys_and_values(tiny_base: BaseModel) -> None:
    parent = parent_of(tiny_base, ["a"])
    honest = nudged(tiny_base, parent, 0.02)
    planted = shuffled(honest, seed=0)
    assert torch.equal(planted.up_KR.flatten().sort().values, honest.up_KR.flatten().sort().values)
    kv = [examination(tiny_base, parent, candidate).kv["a"] for candidate in (honest, planted)]
    assert kv[1] > 5 * kv[0] > 0


def test_a_first_version_is_compared_with_the_base_itself(tiny_base: BaseModel) -> None:
    fresh = replace(parent_of(tiny_base, []), up_KR=torch.zeros(tiny_base.layout.total, 3))
    assert torch.allclose(condition(tiny_base, ["a cat"], fresh), condition(tiny_base, ["a cat"], None))
    candidate = replace(fresh, up_KR=50 * torch.ones_like(fresh.up_KR), tokens={NEW.name: torch.ones(1, 32)})
    found = evidence_of(tiny_base, fresh, candidate)
    assert found.drift == found.kv == found.dc_drop == {}
    assert found.base.similarity < 0.999


def test_of_many_concepts_those_are_judged_whose_keys_and_values_moved_most(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MOST", 2)
    parent = parent_of(tiny_base, ["a", "b", "c"])
    found = evidence_of(tiny_base, parent, nudged(tiny_base, parent, 0.5))
    assert set(found.kv) == {"a", "b", "c"}
    assert (
        set(found.drift) == set(found.dc_accuracy) == found.kv.keys() - {min(found.kv, key=lambda name: found.kv[name])}
    )


def test_pictures_are_compared_with_those_of_the_same_concept(tiny_base: BaseModel) -> None:
    """The judged concepts are not in the order of their drift."""
    parent = parent_of(tiny_base, ["a", "b"])
    candidate = nudged(tiny_base, parent, 0.0)
    moved = replace(candidate, tokens={**candidate.tokens, "b": 30 * torch.ones(1, tiny_base.layout.text_width)})
    found = evidence_of(tiny_base, parent, moved)
    assert found.drift["a"].similarity == pytest.approx(1, abs=1e-4)
    assert found.drift["b"].similarity < found.drift["a"].similarity


def test_a_new_concept_is_compared_with_its_own_images(tiny_base: BaseModel) -> None:
    parent = parent_of(tiny_base, [])
    candidate, latents = nudged(tiny_base, parent, 0.0), random_latents(tiny_base, 1)
    found = replace(examination(tiny_base, parent, candidate), latents_NCHW=latents)
    copied = {NEW.name: tiny_base.decode_latents(latents)}
    assert found.evidence(copied).new_similarity == pytest.approx(1, abs=1e-4)
    assert found.evidence(draw_concepts(tiny_base, candidate, [NEW], SEEDS)).new_similarity < 0.999


def test_features_of_a_base_with_nothing_beside_it_are_its_latents(tiny_base: BaseModel) -> None:
    features = gate_features("auto", tiny_base)
    assert isinstance(features, LatentFeatures)
    pictures = torch.randint(256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = features.images(pictures)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert features.digest == tiny_base.ref.revision
