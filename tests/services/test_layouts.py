"""The architectures of published checkpoints, with either prediction type, against plain diffusers pipelines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cp_train.evaluation.draw import draw
from cp_train.fisher import FisherConfig, fisher_information
from cp_train.methods.kv import moved, protect
from services import scores
from services.adapter import Adapter
from services.base_model import BaseModel, load_base, load_outline, revision_of
from services.conditioning import condition
from services.errors import InputError
from tests.bases import random_latents, reference, some_adapter, student_of
from tests.layouts import ARCHITECTURES, save

PREDICTIONS = ("epsilon", "v_prediction")
VECTORS = {"mug": 1, "my-fox": 2}
PROMPTS = ["a photo of a <mug>", "<my-fox> and <mug> in the rain", "neither"]
KINDS = [(architecture, prediction) for architecture in ARCHITECTURES for prediction in PREDICTIONS]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def layout_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("-".join(request.param))
    save(*request.param, folder)
    return load_base(str(folder), device="cpu")


@pytest.fixture
def xl_folder(tmp_path: Path) -> Path:
    save("sdxl", "epsilon", tmp_path)
    return tmp_path


def with_empty(pipeline: Any, prompts: list[str]) -> dict[str, Any]:
    """Arguments of a plain U-Net for some prompts and, last, what guidance leads away from."""
    device = torch.device("cpu")
    if not hasattr(pipeline, "text_encoder_2"):
        text = pipeline.encode_prompt([*prompts, ""], device, 1, do_classifier_free_guidance=False)[0]
        return {"encoder_hidden_states": text}
    text, empty, pooled, empty_pooled = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    width = pipeline.text_encoder_2.config.projection_dim
    sizes = pipeline._get_add_time_ids((side, side), (0, 0), (side, side), torch.float32, width)
    added = {"text_embeds": torch.cat([pooled, empty_pooled[:1]]), "time_ids": sizes.repeat(len(prompts) + 1, 1)}
    return {"encoder_hidden_states": torch.cat([text, empty[:1]]), "added_cond_kwargs": added}


def both(base: BaseModel, adapter: Adapter | None, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Outputs of our U-Net and of a plain pipeline's."""
    x, t = random_latents(base, len(prompts) + 1), torch.tensor([3, 500, 999, 200])
    pipeline = reference(base, adapter)
    with torch.no_grad():
        ours = base.unet(x, t, encoder_hidden_states=condition(base, [*prompts, ""], adapter)).sample
        return ours, pipeline.unet(x, t, **with_empty(pipeline, prompts)).sample


def test_the_unet_is_that_of_a_plain_pipeline(layout_base: BaseModel) -> None:
    ours, plain = both(layout_base, None, ["a photo of a mug", "two dogs", "a red house in the rain"])
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours[0], ours[1])


def test_with_an_adapter_it_is_that_of_a_plain_pipeline_with_the_exported_files(layout_base: BaseModel) -> None:
    adapter = some_adapter(layout_base.layout, VECTORS)
    ours, plain = both(layout_base, adapter, PROMPTS)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_the_target_is_what_the_schedule_of_diffusers_predicts(layout_base: BaseModel) -> None:
    from diffusers import DDPMScheduler

    latents, t = random_latents(layout_base, 2), torch.tensor([10, 900])
    noise = random_latents(layout_base, 2, seed=1)
    schedule = DDPMScheduler.from_config(layout_base.scheduler_config)
    trial = scores.make_trial(layout_base, latents, t, noise)
    expected = schedule.get_velocity(latents, noise, t) if layout_base.prediction_type != "epsilon" else noise
    torch.testing.assert_close(trial.target_SCHW, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trial.noisy_SCHW, schedule.add_noise(latents, noise, t), rtol=1e-4, atol=1e-5)


def test_its_loss_reaches_the_lora_and_the_whole_embedding(layout_base: BaseModel) -> None:
    student = student_of(layout_base)
    trial = scores.draw_trial(layout_base, random_latents(layout_base, 1), torch.Generator().manual_seed(0))
    kv = student(student.encode(student.tokenize(["a photo of a <new>"])))
    scores.errors(layout_base, trial, kv.unsqueeze(0)).sum().backward()
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().amax() > 0
    assert student.token.grad is not None
    assert (student.token.grad != 0).all()
    assert student.token.shape == (1, layout_base.layout.text_width)


def test_its_fisher_information_and_its_keys_and_values_can_be_protected(layout_base: BaseModel) -> None:
    student = student_of(layout_base, earlier=("fox",))
    parent = student_of(layout_base, earlier=("fox",), seed=1).adapter()
    config = FisherConfig(batches=1, batch_size=1, chunk=2)
    prompts = ["a photo of a <new>", "a photo of a mug", "a photo of a <fox>"]
    found = fisher_information(student, random_latents(layout_base, 1), lambda _: prompts, config, seed=0)
    assert found.up_KR.isfinite().all()
    assert found.up_KR.any()
    moments_PDD = protect(layout_base, student.tokenize(["", "a photo of a <fox>"]), parent)
    penalty = moved(student, parent, moments_PDD)
    assert penalty.isfinite()
    assert penalty > 0


def test_it_draws(layout_base: BaseModel) -> None:
    adapter = some_adapter(layout_base.layout, VECTORS)
    pictures = draw(layout_base, adapter, PROMPTS[:2], [0])
    assert pictures.shape == (2, 1, layout_base.image_size, layout_base.image_size, 3)
    assert not torch.equal(pictures[0], pictures[1])


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("unet/config.json", {"projection_class_embeddings_input_dim": 80}, "other numbers than SDXL's"),
        ("text_encoder_2/config.json", {"hidden_size": 48}, "text encoder's width"),
        ("tokenizer_2/tokenizer_config.json", {"pad_token": "a token of its own"}, "two tokenizers differ"),
    ],
)
def test_a_relative_of_sdxl_is_refused(xl_folder: Path, file: str, values: dict[str, object], why: str) -> None:
    change(xl_folder, file, **values)
    with pytest.raises(InputError, match=rf"is not a Stable Diffusion .* \(.*{why}.*\)\."):
        load_outline(str(xl_folder))


def test_the_second_encoder_counts_in_the_revision(xl_folder: Path) -> None:
    before = revision_of(xl_folder)
    path = xl_folder / "text_encoder_2" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert revision_of(xl_folder) != before
