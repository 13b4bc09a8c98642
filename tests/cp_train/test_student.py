"""What is trained, and what it starts from."""

import pytest
import torch

from cp_train.student import FrozenContexts, Student, noun_embedding
from services.base_model import BaseModel
from services.conditioning import condition
from services.manifest import Concept
from tests.bases import some_adapter, student_of


def test_a_student_starts_as_its_parent(any_base: BaseModel) -> None:
    parent = some_adapter(any_base.layout, {"fox": 2}, rank=4, alpha=2.0)
    student = Student(any_base, parent, Concept(name="new", noun="mug"), seed=0)
    found = student.adapter()
    assert torch.equal(found.down_PRD, parent.down_PRD)
    assert torch.equal(found.up_KR, parent.up_KR)
    assert (found.alpha, student.scale) == (2.0, 0.5)
    assert list(found.tokens) == ["fox", "new"]
    assert torch.equal(found.tokens["fox"], parent.tokens["fox"])


def test_only_the_lora_and_the_new_token_are_parameters(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base, earlier=("fox", "cat"))
    assert {name for name, _ in student.named_parameters()} == {"down_PRD", "up_KR", "token"}
    kv = student(student.encode(student.tokenize(["a <new> and a <fox>"])))
    kv.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert not any(rows.requires_grad for rows in student.earlier.values())


def test_its_keys_and_values_are_those_that_its_adapter_is_served_with(any_base: BaseModel) -> None:
    student = student_of(any_base, earlier=("fox",))
    prompts = ["a photo of a <new>", "<fox>", "no concept"]
    with torch.no_grad():
        found = student(student.encode(student.tokenize(prompts)))
    torch.testing.assert_close(found, condition(any_base, prompts, student.adapter()))


def test_an_adapter_taken_from_a_student_does_not_change_with_it(tiny_base: BaseModel) -> None:
    student = student_of(tiny_base)
    taken = student.adapter()
    before = [tensor.clone() for tensor in (taken.down_PRD, taken.up_KR, taken.tokens["new"])]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    after = (taken.down_PRD, taken.up_KR, taken.tokens["new"])
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_the_token_starts_as_the_mean_of_the_nouns_embeddings(tiny_base: BaseModel) -> None:
    table = tiny_base.text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    ids = tiny_base.tokenizer("teddy bear", add_special_tokens=False).input_ids
    assert len(ids) > 1
    found = noun_embedding(tiny_base, Concept(name="new", noun="teddy bear"), seed=0)
    torch.testing.assert_close(found, table[ids].mean(0, keepdim=True))


def test_several_vectors_start_apart_and_the_first_at_the_noun(tiny_base: BaseModel) -> None:
    one = noun_embedding(tiny_base, Concept(name="new", noun="mug"), seed=0)
    three = noun_embedding(tiny_base, Concept(name="new", noun="mug", vectors=3), seed=0)
    assert torch.equal(three[:1], one)
    assert not torch.allclose(three[1], three[0])
    assert not torch.allclose(three[1], three[2])


def test_without_a_noun_the_token_is_a_draw_of_the_tables_spread(tiny_base: BaseModel) -> None:
    table = tiny_base.text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    concept = Concept(name="new", noun="", vectors=16)
    found = noun_embedding(tiny_base, concept, seed=0)
    assert found.std().item() == pytest.approx(table.std().item(), rel=0.15)
    assert torch.equal(found, noun_embedding(tiny_base, concept, seed=0))
    assert not torch.equal(found, noun_embedding(tiny_base, concept, seed=1))


def test_several_concepts_at_once_have_an_embedding_each(tiny_base: BaseModel) -> None:
    concepts = [Concept(name="a", noun="mug"), Concept(name="b", noun="dog", vectors=2)]
    student = Student(tiny_base, some_adapter(tiny_base.layout, {"fox": 1}), *concepts, seed=0)
    tokens = student.tokens
    assert list(tokens) == ["fox", "a", "b"]
    for concept in concepts:
        assert torch.equal(tokens[concept.name], noun_embedding(tiny_base, concept, seed=0))
    tokens["b"].sum().backward()
    assert student.token.grad is not None
    assert student.token.grad.any(1).tolist() == [False, True, True]


def test_a_frozen_prompt_is_encoded_once(tiny_base: BaseModel) -> None:
    student, encoded = student_of(tiny_base, earlier=("fox",)), []
    handle = tiny_base.text_encoder.register_forward_hook(lambda _m, ids, _out: encoded.append(len(ids[0])))
    try:
        contexts = FrozenContexts(student)
        first = contexts(["a <new>", "a <fox>", "a <new>"])
        again = contexts(["a <fox>", "a mug"])
    finally:
        handle.remove()
    assert encoded == [2, 1]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])
    with torch.no_grad():
        torch.testing.assert_close(again, student.encode(student.tokenize(["a <fox>", "a mug"])))
    assert not first.requires_grad
