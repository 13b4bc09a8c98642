"""Bases: what identifies one, what is refused before its weights are loaded, and that nothing of it ever changes."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from services.base_model import COMPONENTS, BaseModel, load_base, load_outline, resolve, revision_of, use_threads
from services.errors import InputError
from tests.bases import KINDS, random_latents, reference


def test_the_revision_is_the_same_for_the_same_bytes(own_folder: Path, tiny_bases: Mapping[str, BaseModel]) -> None:
    assert revision_of(own_folder) == tiny_bases["epsilon"].ref.revision
    assert len({base.ref.revision for base in tiny_bases.values()}) == len(KINDS)


def test_the_revision_ignores_what_is_not_read(own_folder: Path) -> None:
    before = revision_of(own_folder)
    (own_folder / "README.md").write_text("about")
    (own_folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a half-precision variant")
    (own_folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    assert revision_of(own_folder) == before


def test_the_revision_changes_with_any_byte_of_what_is_read(own_folder: Path) -> None:
    before = revision_of(own_folder)
    files = [own_folder / "model_index.json", *(path for part in COMPONENTS for path in (own_folder / part).iterdir())]
    assert len(files) >= 10
    for path in files:
        data = path.read_bytes()
        for spoiled in (bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1]), data + b" "):
            path.write_bytes(spoiled)
            assert revision_of(own_folder) != before, path
        path.write_bytes(data)
    assert revision_of(own_folder) == before


def test_the_revision_changes_with_a_files_name(own_folder: Path) -> None:
    before = revision_of(own_folder)
    (own_folder / "tokenizer" / "tokenizer.json").rename(own_folder / "tokenizer" / "other.json")
    assert revision_of(own_folder) != before


def test_the_outline_says_what_the_loaded_base_says(any_base: BaseModel) -> None:
    outline = load_outline(any_base.ref.id)
    assert outline.ref == any_base.ref
    assert outline.layout == any_base.layout
    assert outline.tokenizer("a photo").input_ids == any_base.tokenizer("a photo").input_ids


def test_the_layout_names_every_text_projection_in_packed_order(any_base: BaseModel) -> None:
    unet = reference(any_base).unet
    names = [projection.name for projection in any_base.layout.projections]
    assert sorted(names) == sorted(n for n, _ in unet.named_modules() if ".attn2.to_k" in n or ".attn2.to_v" in n)
    assert len(names) == 8
    weights = any_base.weight_KD.split(any_base.layout.widths)
    for name, weight in zip(names, weights, strict=True):
        assert torch.equal(weight, unet.get_submodule(name).weight)


def test_the_embedded_base_is_loaded_by_its_name(embedded_base: BaseModel) -> None:
    assert embedded_base.ref == load_outline("embedded").ref
    assert embedded_base.ref.revision == revision_of(resolve("embedded"))
    assert embedded_base.image_size == embedded_base.unet.config.sample_size * embedded_base.vae_factor


def test_nothing_of_a_base_can_be_trained(any_base: BaseModel) -> None:
    for module in (any_base.text_encoder, any_base.vae, any_base.unet):
        assert isinstance(module, nn.Module)
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any_base.weight_KD.requires_grad


def test_torch_takes_the_threads_it_is_given_and_else_all_cores() -> None:
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(0)
    assert torch.get_num_threads() == os.cpu_count()


def test_the_noise_schedule_is_the_schedulers(any_base: BaseModel) -> None:
    expected = reference(any_base).scheduler.alphas_cumprod
    assert torch.equal(any_base.alphas_cumprod, expected.float())
    assert (any_base.alphas_cumprod[-1] == 0) == (any_base.prediction_type == "v_prediction")


def test_a_scheduler_is_corrected_as_diffusers_pipeline_does(own_folder: Path) -> None:
    change(own_folder, "scheduler/scheduler_config.json", clip_sample=True, steps_offset=0)
    config = load_base(str(own_folder), device="cpu").scheduler_config
    assert (config["clip_sample"], config["steps_offset"]) == (False, 1)


def test_pictures_go_through_the_vae_as_in_diffusers(any_base: BaseModel) -> None:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = reference(any_base).vae
    with torch.no_grad():
        expected = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
        drawn = vae.decode(random_latents(any_base, 2) / vae.config.scaling_factor).sample
    assert torch.equal(any_base.encode_images(pictures), expected)
    decoded = any_base.decode_latents(random_latents(any_base, 2))
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (2, 16, 16, 3)
    expected = ((drawn / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    assert torch.equal(decoded.float(), expected)


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def only_pickles(folder: Path) -> None:
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def rename(folder: Path, part: str) -> None:
    (folder / part).rename(folder / "elsewhere")


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights only": (only_pickles, "FileNotFoundError"),
    "no VAE": (lambda f: rename(f, "vae"), "FileNotFoundError"),
    "no U-Net": (lambda f: rename(f, "unet"), "FileNotFoundError"),
    "no text encoder": (lambda f: rename(f, "text_encoder"), "FileNotFoundError"),
    "no tokenizer": (lambda f: rename(f, "tokenizer"), "Error"),
    "no scheduler": (lambda f: rename(f, "scheduler"), "FileNotFoundError"),
    "no VAE weights": (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "FileNotFoundError"),
    "broken JSON": (lambda f: (f / "unet" / "config.json").write_text("{"), "JSONDecodeError"),
    "another prediction": (
        lambda f: change(f, "scheduler/scheduler_config.json", prediction_type="sample"),
        "predicts",
    ),
    "inpainting": (lambda f: change(f, "unet/config.json", in_channels=9), "VAE's latents"),
    "class conditioning": (lambda f: change(f, "unet/config.json", num_class_embeds=10), "more than time and text"),
    "another text width": (lambda f: change(f, "text_encoder/config.json", hidden_size=64), "text encoder's width"),
    "upscaler": (lambda f: change(f, "unet/config.json", only_cross_attention=True), "other attention layers"),
    "no text": (
        lambda f: change(f, "unet/config.json", down_block_types=["AttnDownBlock2D", "DownBlock2D"]),
        "other attention layers",
    ),
    "long tokenizer": (lambda f: change(f, "tokenizer/tokenizer_config.json", model_max_length=77), "model_max_length"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_not_our_layout_is_refused_before_its_weights_are_loaded(case: str, own_folder: Path) -> None:
    spoil, why = SPOILED[case]
    spoil(own_folder)
    for load in (load_outline, load_base):
        with pytest.raises(InputError, match=rf"is not a Stable Diffusion .* \(.*{why}.*\)\.") as refused:
            load(str(own_folder))
        assert refused.value.param == "base"
        assert refused.value.message.startswith(f"base: {str(own_folder)!r} ")


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet"])
def test_damaged_weights_are_refused(part: str, own_folder: Path) -> None:
    (weights,) = (own_folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"^base: "):
        load_base(str(own_folder), device="cpu")


@pytest.mark.parametrize(
    "reference", ["", "embeded", "./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", "no spaces/x"]
)
def test_what_names_no_base_is_refused_without_asking_the_hub(reference: str) -> None:
    with pytest.raises(InputError, match=r"^base: ") as refused:
        load_outline(reference)
    assert refused.value.param == "base"


def test_an_empty_folder_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no pipeline"):
        load_outline(str(tmp_path))
