"""Features: the judge's, and those of a real CLIP and DINO built tiny."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cp_train.evaluation.features import AUTO, open_agreement, open_features
from cp_train.evaluation.judge import Judge, JudgeSize
from services.base_model import EMBEDDED, BaseModel
from services.errors import InputError

SIDE = 24


def pictures(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

    from cp_train.pretrain import vision

    root = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}))
    clip.save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    second = vision.build(vision.VisionConfig(widths=(8, 16)), clip, classes=3)
    second.save_pretrained(root / "tower")
    tokenizer.save_pretrained(root / "tower")
    Dinov2Model(Dinov2Config(**small, image_size=14, patch_size=7)).save_pretrained(root / "dino")
    Judge(JudgeSize(widths=(8, 16), blocks=1), ("a",)).save(root / "judge")
    return {name: root / name for name in ("clip", "tower", "dino", "judge")}


@pytest.mark.parametrize("kind", ["clip", "tower", "dino", "judge"])
def test_features_have_length_one_and_tell_pictures_apart(models: Mapping[str, Path], kind: str) -> None:
    features = open_features(str(models[kind]), "embedded")
    found = features.images(pictures())
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    assert torch.allclose(found, features.images(pictures()), atol=1e-6)
    assert (found @ found.T)[0, 1] < 1 - 1e-6


def test_the_judge_sees_pixels_between_minus_one_and_one(models: Mapping[str, Path]) -> None:
    white = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    direct = Judge.load(models["judge"]).features(torch.ones(1, 3, 64, 64))
    assert torch.allclose(open_features(str(models["judge"]), "embedded").images(white), direct, atol=1e-4)


def test_clip_is_fed_as_its_preprocessor_says(models: Mapping[str, Path], tmp_path: Path) -> None:
    import shutil

    told = Path(shutil.copytree(models["clip"], tmp_path / "clip"))
    words = (
        '{"image_processor_type": "CLIPImageProcessor", "image_mean": [0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7]}'
    )
    (told / "preprocessor_config.json").write_text(words, "utf-8")
    shown = torch.full((1, 16, 16, 3), 51, dtype=torch.uint8)  # 0.2
    features = open_features(str(told), "embedded")
    pixels = (torch.full((1, 3, 16, 16), 0.2) - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    model = features.model  # type: ignore[attr-defined]
    direct = model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(features.images(shown), torch.nn.functional.normalize(direct, dim=-1), atol=1e-5)


def test_another_image_tower_leaves_the_words_alone(models: Mapping[str, Path]) -> None:
    ids = torch.tensor([[1, 2, 3]])
    opened = [open_features(str(models[kind]), "embedded").model for kind in ("clip", "tower")]  # type: ignore[attr-defined]
    one, other = (model.get_text_features(input_ids=ids).pooler_output for model in opened)
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "tower"])
def test_agreement_is_the_cosine_of_picture_and_prompt(
    models: Mapping[str, Path], tiny_base: BaseModel, kind: str
) -> None:
    features = open_features(str(models[kind]), "embedded")
    agreement = open_agreement(features, "embedded", tiny_base.tokenizer)
    assert agreement is not None
    apart = [agreement(pictures()[i : i + 1], [prompt]) for i, prompt in enumerate(("a cat", "a dog"))]
    assert agreement(pictures(2), ["a cat", "a dog"]) == pytest.approx(sum(apart) / 2, abs=1e-6)
    assert all(-1 <= cosine <= 1 for cosine in apart)


def test_the_clip_beside_a_base_reads_by_the_bases_tokenizer(
    models: Mapping[str, Path], tiny_base: BaseModel, tmp_path: Path
) -> None:
    import shutil

    for name in ("config.json", "model.safetensors"):
        (tmp_path / "clip").mkdir(exist_ok=True)
        shutil.copy(models["clip"] / name, tmp_path / "clip" / name)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}", "utf-8")
    base = str(tmp_path / "pipeline")
    expected = open_agreement(open_features(str(models["clip"]), base), base, None)
    bare = open_features(str(tmp_path / "clip"), base)
    beside = open_agreement(bare, base, tiny_base.tokenizer)
    implied = open_agreement(open_features(str(models["judge"]), base), base, tiny_base.tokenizer)
    assert expected is not None
    for found in (beside, implied):
        assert found is not None
        prompts = ["a cat", "a red dog"]
        assert found(pictures(2), prompts) == pytest.approx(expected(pictures(2), prompts), abs=1e-6)
    with pytest.raises(InputError, match="has no tokenizer beside it"):
        open_agreement(bare, "embedded", tiny_base.tokenizer)


def test_a_base_without_a_judge_needs_features_by_name(tiny_folders: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match=r"there is no judge in .*; name a CLIP or DINO model"):
        open_features(AUTO, str(tiny_folders["epsilon"]))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no judge, CLIP or DINO"):
        open_features(str(tmp_path), "embedded")
