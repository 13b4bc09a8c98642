"""The cache of prompts' keys and values."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cp_serve.metrics import Metrics
from cp_serve.prompts import Prompts
from services.base_model import BaseModel
from services.conditioning import condition
from services.errors import InputError
from tests.bases import some_adapter


def slot_of(base: BaseModel, seed: int) -> Any:
    return SimpleNamespace(
        digest=f"sha256:{seed}", model=f"pets@{seed}", adapter=some_adapter(base.layout, {"fox": 1}, seed=seed)
    )


def counts(metrics: Metrics) -> tuple[float, float]:
    samples = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
    return samples["palimpsest_prompt_cache_hits_total"], samples["palimpsest_prompt_cache_misses_total"]


def test_a_repeated_prompt_is_computed_once_and_stays_its_versions(tiny_base: BaseModel) -> None:
    metrics, one, other = Metrics(), slot_of(tiny_base, 1), slot_of(tiny_base, 2)
    prompts = Prompts(tiny_base, max_bytes=2**24, metrics=metrics)
    first = prompts("a <fox>", one)
    assert prompts("a <fox>", one) is first
    assert torch.equal(first, condition(tiny_base, ["a <fox>"], one.adapter))
    assert not torch.equal(prompts("a <fox>", other), first)
    assert not torch.equal(prompts("a fox", None), prompts("a fox", one))
    assert counts(metrics) == (1, 4)


def test_it_is_bounded_and_forgets_what_was_used_least_recently(tiny_base: BaseModel) -> None:
    metrics, size = Metrics(), condition(tiny_base, [""], None).nbytes
    prompts = Prompts(tiny_base, max_bytes=2 * size, metrics=metrics)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        prompts(prompt, None)
    assert counts(metrics) == (2, 4), "b went when c came"
    nothing = Prompts(tiny_base, max_bytes=0)
    assert nothing("a", None) is not nothing("a", None)


def test_what_a_deleted_version_computed_is_dropped(tiny_base: BaseModel) -> None:
    metrics, one, other = Metrics(), slot_of(tiny_base, 1), slot_of(tiny_base, 2)
    prompts = Prompts(tiny_base, max_bytes=2**24, metrics=metrics)
    for slot in (one, other, None):
        prompts("a fox", slot)
    prompts.forget({("pets", 1), ("mugs", 2)})
    for slot in (other, None, one):
        prompts("a fox", slot)
    assert counts(metrics) == (2, 4), "only version 1's was computed again"


def test_no_prompt_is_kept(tiny_base: BaseModel) -> None:
    prompts = Prompts(tiny_base, max_bytes=2**24)
    prompts("a very secret fox", None)
    assert not [key for key in prompts._kept if b"secret" in key]
    assert prompts._kept.keys().isdisjoint(_filled(Prompts(tiny_base, max_bytes=2**24)))


def _filled(prompts: Prompts) -> set[bytes]:
    prompts("a very secret fox", None)
    return set(prompts._kept)


def test_what_cannot_be_encoded_says_which_field(tiny_base: BaseModel) -> None:
    prompts = Prompts(tiny_base, max_bytes=2**24)
    with pytest.raises(InputError) as refused:
        prompts("a <cat>", None, param="negative_prompt")
    assert refused.value.param == "negative_prompt"
