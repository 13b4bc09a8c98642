"""Prompt and adapter become keys and values, exactly as a plain diffusers pipeline would have them."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cp_train.evaluation import draw
from services.base_model import BaseModel, BaseOutline, load_outline
from services.conditioning import TokenizedPrompt, condition, delta, embed, project, tokenize
from services.errors import InputError
from services.export import export
from tests.bases import add_tokens, random_latents, reference, some_adapter

VECTORS = {"mug": 1, "my-fox": 3, "x": 1}
PROMPTS = [
    "",
    "a photo of a mug",
    "a photo of a <mug>",
    "<mug>",
    "<mug> on a table, <my-fox> under it",
    "<my-fox><mug><my-fox>",
    "the<mug>s and <mug>'s handle",
    "A Big RED <mug> Of The KING",
    "ein schöner <mug> für Ωmega",
    "漢字 <mug>🦊",
    "  <mug>   with   spaces\tand\nlines  ",
    "less < than, 3<4 and >5, <> and < mug >",
    "<x>",
    "it's <x>, isn't it? 1234",
]


@pytest.fixture(scope="module")
def outline() -> BaseOutline:
    return load_outline("embedded")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_a_tokenizer_that_got_the_concepts_by_add_tokens(outline: BaseOutline, prompt: str) -> None:
    plain = deepcopy(outline.tokenizer)
    add_tokens(plain, VECTORS)
    spelled = prompt.replace("<my-fox>", "<my-fox><my-fox>_1<my-fox>_2")
    expected = plain(spelled, padding="max_length", max_length=24).input_ids
    found = tokenize(outline, prompt, VECTORS)
    ids = list(found.ids)
    for position, name, index in found.concepts:
        ids[position] = plain.convert_tokens_to_ids(f"<{name}>_{index}" if index else f"<{name}>")
    assert ids == expected
    assert len(outline.tokenizer) == len(plain) - 5


def test_each_embedding_of_a_concept_has_its_place(outline: BaseOutline) -> None:
    found = tokenize(outline, "a <my-fox> <mug>", VECTORS)
    assert found.concepts == ((2, "my-fox", 0), (3, "my-fox", 1), (4, "my-fox", 2), (5, "mug", 0))


def test_an_unknown_concept_is_refused_by_name_and_the_known_ones_are_listed(outline: BaseOutline) -> None:
    with pytest.raises(InputError) as refused:
        tokenize(outline, "a <mug> and a <dog>", {"mug": 1, "fox": 1})
    assert refused.value.message == "prompt: <dog> is not a concept of this version (it knows: <mug>, <fox>)."
    with pytest.raises(InputError, match=r"noun: <mug> is not .* \(it knows: none yet\)") as refused:
        tokenize(outline, "<mug>", {}, param="noun")
    assert refused.value.param == "noun"


@pytest.mark.parametrize("prompt", ["<MUG>", "<|endoftext|>", "<lora:x:1>"])
def test_whatever_else_stands_in_angle_brackets_is_never_guessed(outline: BaseOutline, prompt: str) -> None:
    with pytest.raises(InputError, match="is not a concept"):
        tokenize(outline, prompt, {"mug": 1})


def test_a_prompt_that_fills_the_text_encoder_is_taken_and_one_token_more_refused(outline: BaseOutline) -> None:
    fitting = "<my-fox> " + "a " * 18 + "<mug>"
    assert tokenize(outline, fitting, VECTORS).ids[-1] == outline.tokenizer.eos_token_id
    assert len(tokenize(outline, fitting, VECTORS).ids) == 24
    with pytest.raises(InputError, match=r"prompt: 23 tokens, but this base's text encoder takes 22; shorten it"):
        tokenize(outline, f"{fitting} a", VECTORS)
    with pytest.raises(InputError, match="prompt: 5000 tokens"):
        tokenize(outline, "a " * 5000, VECTORS)


def at_once(base: BaseModel, pipeline: Any, prompts: list[str], kv_BLK: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of our U-Net and of a plain pipeline's, for the same latents and times."""
    x, t = random_latents(base, len(prompts)), torch.tensor([3, 500, 999])[: len(prompts)]
    with torch.no_grad():
        ours = base.unet(x, t, encoder_hidden_states=kv_BLK).sample
        text = pipeline.encode_prompt(prompts, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
        return ours, pipeline.unet(x, t, encoder_hidden_states=text).sample


def test_without_an_adapter_the_unet_is_that_of_a_plain_pipeline(any_base: BaseModel) -> None:
    prompts = ["a photo of a mug", "", "Two RED foxes, 12"]
    ours, plain = at_once(any_base, reference(any_base), prompts, condition(any_base, prompts, None))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_with_gradients_the_unet_is_the_same(any_base: BaseModel) -> None:
    kv = condition(any_base, ["a photo of a mug"], None)
    x, t = random_latents(any_base, 1), torch.tensor([400])
    with torch.no_grad():
        fused = any_base.unet(x, t, encoder_hidden_states=kv).sample
    written = any_base.unet(x, t, encoder_hidden_states=kv.requires_grad_()).sample
    torch.testing.assert_close(written, fused, rtol=1e-4, atol=1e-5)


def test_with_an_adapter_the_unet_is_that_of_a_plain_pipeline_with_the_exported_files(any_base: BaseModel) -> None:
    adapter = some_adapter(any_base.layout, {"mug": 1, "my-fox": 2})
    prompts = ["a photo of a <mug>", "<my-fox> and <mug>", "neither"]
    kv = condition(any_base, prompts, adapter)
    ours, plain = at_once(any_base, reference(any_base, adapter), prompts, kv)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(kv[2], condition(any_base, prompts[2:], None)[0], atol=1e-2)


def test_the_embedded_base_and_its_adapter_are_a_plain_pipeline_too(embedded_base: BaseModel) -> None:
    adapter = some_adapter(embedded_base.layout, {"mug": 1})
    kv = condition(embedded_base, ["a photo of a <mug>"], adapter)
    ours, plain = at_once(embedded_base, reference(embedded_base, adapter), ["a photo of a <mug>"], kv)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_the_export_holds_the_scale_when_alpha_is_not_the_rank(any_base: BaseModel, tmp_path: Path) -> None:
    adapter = some_adapter(any_base.layout, {"mug": 1}, rank=4, alpha=1.0)
    export(adapter, any_base.layout, tmp_path)
    plain = reference(any_base, adapter, lora=tmp_path / "pytorch_lora_weights.safetensors")
    kv = condition(any_base, ["a photo of a <mug>"], adapter)
    ours, theirs = at_once(any_base, plain, ["a photo of a <mug>"], kv)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    unscaled = replace(adapter, alpha=4.0)
    assert not torch.allclose(kv, condition(any_base, ["a photo of a <mug>"], unscaled), atol=1e-2)


def test_a_plain_pipeline_with_the_exported_files_makes_the_same_picture(any_base: BaseModel, tmp_path: Path) -> None:
    adapter = some_adapter(any_base.layout, {"mug": 1, "my-fox": 2}, rank=4, alpha=2.0)
    export(adapter, any_base.layout, tmp_path)
    plain = reference(any_base, adapter, lora=tmp_path / "pytorch_lora_weights.safetensors")
    prompt = "a <mug> beside my <my-fox>"
    (ours,) = draw.draw(any_base, adapter, [prompt], [7])[0].numpy()
    generator = torch.Generator().manual_seed(7)
    options = {"num_inference_steps": draw.STEPS, "guidance_scale": draw.GUIDANCE, "generator": generator}
    (theirs,) = plain(prompt, output_type="np", **options).images
    assert np.abs(ours - theirs * 255).max() <= 2
    assert theirs.std() > 0.02


def test_keys_and_values_by_hand() -> None:
    base = SimpleNamespace(weight_KD=torch.eye(3, 2), layout=SimpleNamespace(widths=[1, 2]))
    context = torch.tensor([[[1.0, 2.0]]])
    down = torch.tensor([[[1.0, 1.0]], [[0.0, 3.0]]])  # A e = 3 and 6
    up = torch.tensor([[10.0], [1.0], [-1.0]])
    assert delta(base, context, down, up).tolist() == [[[30.0, 6.0, -6.0]]]  # type: ignore[arg-type]
    assert project(base, context, down, up, 0.5).tolist() == [[[16.0, 5.0, -3.0]]]  # type: ignore[arg-type]


def test_gradients_reach_the_tokens_in_the_prompt_and_nothing_of_the_base(any_base: BaseModel) -> None:
    tokens = {name: rows.requires_grad_() for name, rows in some_adapter(any_base.layout, VECTORS).tokens.items()}
    prompts = [tokenize(any_base, prompt, VECTORS) for prompt in ("a <my-fox>", "<mug> and <mug>")]
    embed(any_base, prompts, tokens).square().sum().backward()
    assert tokens["my-fox"].grad is not None
    assert tokens["mug"].grad is not None
    assert (tokens["my-fox"].grad.abs().sum(1) > 0).all()
    assert tokens["mug"].grad.any()
    assert tokens["x"].grad is None or not tokens["x"].grad.any()
    assert all(parameter.grad is None for parameter in any_base.text_encoder.parameters())


def hooks(base: BaseModel) -> int:
    embedding: nn.Module = base.text_encoder.get_input_embeddings()  # type: ignore[operator]
    return len(embedding._forward_hooks)


def test_no_hook_stays_behind_even_after_an_error(tiny_base: BaseModel) -> None:
    adapter = some_adapter(tiny_base.layout, VECTORS)
    before = condition(tiny_base, ["a photo"], None)
    condition(tiny_base, ["<mug>"], adapter)
    assert hooks(tiny_base) == 0
    outside = TokenizedPrompt((10**6,) * 24, ((1, "mug", 0),))
    with pytest.raises(IndexError):
        embed(tiny_base, [outside], adapter.tokens)
    with pytest.raises(KeyError):
        embed(tiny_base, [replace(outside, concepts=((1, "unheard-of", 0),))], adapter.tokens)
    assert hooks(tiny_base) == 0
    assert torch.equal(condition(tiny_base, ["a photo"], None), before)


def test_prompts_of_one_batch_do_not_touch_each_other(tiny_base: BaseModel) -> None:
    adapter = some_adapter(tiny_base.layout, VECTORS)
    prompts = ["a <mug>", "<my-fox>", "nothing"]
    together = condition(tiny_base, prompts, adapter)
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, condition(tiny_base, [prompt], adapter)[0])
