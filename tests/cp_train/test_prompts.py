"""Prompts that stand for a concept."""

import torch

from cp_train.benchmark.examine import GENERIC
from cp_train.pretrain.splits import held_out, trained
from cp_train.prompts import NOUNS, captions, concept_prompts, plain_prompt, prior_prompts, varied
from services.manifest import Concept

MUG = Concept(name="my-mug", noun="coffee mug")
BARE = Concept(name="it", noun="")
TEMPLATES = ("a photo of a {}", "{} on grass")


def test_a_concept_is_trained_alone_and_with_its_noun_in_every_template() -> None:
    assert concept_prompts(TEMPLATES, MUG) == [
        "a photo of a <my-mug>",
        "a photo of a <my-mug> coffee mug",
        "<my-mug> on grass",
        "<my-mug> coffee mug on grass",
    ]


def test_the_pretrained_concept_is_the_noun_in_the_same_templates() -> None:
    assert prior_prompts(TEMPLATES, MUG) == [
        "a photo of a coffee mug",
        "a photo of a coffee mug",
        "coffee mug on grass",
        "coffee mug on grass",
    ]


def test_without_a_noun_the_pretrained_concept_is_an_object() -> None:
    assert concept_prompts(TEMPLATES[:1], BARE) == ["a photo of a <it>"] * 2
    assert prior_prompts(TEMPLATES[:1], BARE) == ["a photo of a object"] * 2


def test_grids_show_the_concept_alone() -> None:
    assert plain_prompt(MUG) == "a photo of a <my-mug>"


def test_captions_are_many_different_ones_and_begin_with_the_empty_prompt() -> None:
    found = captions(200, torch.Generator().manual_seed(0))
    assert len(found) == 200
    assert found[0] == ""
    assert len(set(found)) > 180
    assert not any("{" in caption or "  " in caption for caption in found)
    assert found == captions(200, torch.Generator().manual_seed(0))


def test_no_caption_names_what_is_held_out_to_be_learned() -> None:
    held = {concept.noun for concept in held_out()}
    assert {"lion", "snowman"} <= held
    assert not held & set(NOUNS)
    assert len(set(NOUNS)) == len(NOUNS)


def test_what_tells_how_the_base_drifts_is_known_to_it_and_protected_by_nobody() -> None:
    words = {word for prompt in GENERIC for word in prompt.split()}
    assert not words & set(NOUNS)
    assert all(any(f" {concept.noun}" in prompt for concept in trained()) for prompt in GENERIC)


def test_a_varied_prompt_has_its_subject_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    found = {varied("<my-mug>", generator) for _ in range(40)}
    assert len(found) > 30
    assert all("<my-mug>" in text for text in found)
