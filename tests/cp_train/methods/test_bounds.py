"""The bounds of the benchmark: one adapter a concept, all concepts at once, embeddings only."""

import torch

from cp_train.denoise import Denoising, LoopConfig, Pictures
from cp_train.methods import condition, find_method
from cp_train.phase import Shard
from cp_train.student import Student
from services.adapter import new_adapter
from services.base_model import BaseModel
from services.conditioning import condition as condition_adapter
from services.manifest import Concept
from tests.bases import random_latents, some_adapter
from tests.cp_train.learning import learned


def test_each_prompt_is_conditioned_by_the_adapters_of_its_concepts(any_base: BaseModel) -> None:
    adapters = {name: some_adapter(any_base.layout, {name: 1}, seed=seed) for seed, name in enumerate(("fox", "cat"))}
    model = find_method("per_concept").model(any_base, adapters)
    fox, cat, both, none = condition(any_base, ["a <fox>", "a <cat>", "a <fox> and a <cat>", "a mug"], model)
    torch.testing.assert_close(fox, condition_adapter(any_base, ["a <fox>"], adapters["fox"])[0])
    torch.testing.assert_close(cat, condition_adapter(any_base, ["a <cat>"], adapters["cat"])[0])
    torch.testing.assert_close(none, condition_adapter(any_base, ["a mug"], None)[0])
    assert not torch.allclose(both[:3], fox[:3])


def test_other_methods_draw_with_the_last_adapter(tiny_base: BaseModel) -> None:
    adapters = {name: some_adapter(tiny_base.layout, {name: 1}) for name in ("fox", "cat")}
    assert find_method("ewc_dc").model(tiny_base, adapters) is adapters["cat"]
    found = condition(tiny_base, ["a <cat>"], adapters["cat"])
    assert torch.equal(found, condition_adapter(tiny_base, ["a <cat>"], adapters["cat"]))


def test_textual_inversion_changes_the_embedding_alone(tiny_base: BaseModel) -> None:
    parent = some_adapter(tiny_base.layout, {"fox": 1})
    student = learned(tiny_base, "textual_inversion", parent, "new", steps=2)
    start = Student(tiny_base, parent, Concept(name="new", noun="mug"), seed=0)
    found = student.adapter()
    assert torch.equal(found.down_PRD, parent.down_PRD)
    assert torch.equal(found.up_KR, parent.up_KR)
    assert torch.equal(found.tokens["fox"], parent.tokens["fox"])
    assert not torch.equal(found.tokens["new"], start.token)


def test_together_each_picture_is_shown_under_its_own_concepts_prompts(tiny_base: BaseModel) -> None:
    concepts = [Concept(name=name, noun="mug") for name in ("a", "b")]
    student = Student(tiny_base, new_adapter(tiny_base.layout, rank=2), *concepts, seed=0)
    latents = torch.cat([torch.zeros_like(random_latents(tiny_base, 2)), 100 + random_latents(tiny_base, 3)])
    prompts = [[f"a <{c.name}>", f"the <{c.name}>"] for c in concepts]
    pictures = Pictures(latents, torch.tensor([0, 0, 1, 1, 1]), prompts)
    phase = Denoising(student, student, pictures, LoopConfig(batch_size=40), Shard())
    trial, drawn = phase.draw(0)
    shown = [phase.prompts[index].concepts[0][1] for index in drawn.tolist()]
    early = trial.t_S < 500  # little noise: the picture shows
    big = trial.noisy_SCHW.flatten(1).mean(1) > 20
    assert early.sum() > 10
    assert {(name, bool(b)) for name, b, e in zip(shown, big, early, strict=True) if e} == {("a", False), ("b", True)}
    assert set(drawn.tolist()) == {0, 1, 2, 3}
