"""Base models to test with: tiny random pipelines of every supported kind, written and read as real ones are.

`reference` is the other side of every comparison: a plain diffusers pipeline that never heard of this project.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from cp_train.plan import LearningConfig, Plan
from cp_train.student import Student
from services.adapter import Adapter, Layout, TrainingState, encode, new_adapter
from services.base_model import EMBEDDED, BaseModel, load_base
from services.manifest import ADAPTER_FILE, Concept

KINDS = ("epsilon", "v_prediction", "sd2")
"""`sd2`: linear projections and another number of heads in each block, as in Stable Diffusion 2.x."""

WIDTH = 32
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from two threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Kind -> folder of a pipeline; never written to."""
    root = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        _save(kind, root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="session")
def tiny_bases(tiny_folders: Mapping[str, Path]) -> Mapping[str, BaseModel]:
    return {kind: load_base(str(folder), device="cpu") for kind, folder in tiny_folders.items()}


@pytest.fixture(params=KINDS)
def any_base(request: pytest.FixtureRequest, tiny_bases: Mapping[str, BaseModel]) -> BaseModel:
    """A test with this argument runs once for each kind."""
    return tiny_bases[request.param]


@pytest.fixture
def tiny_base(tiny_bases: Mapping[str, BaseModel]) -> BaseModel:
    return tiny_bases["epsilon"]


@pytest.fixture
def velocity_base(tiny_bases: Mapping[str, BaseModel]) -> BaseModel:
    return tiny_bases["v_prediction"]


@pytest.fixture(scope="session")
def embedded_base() -> BaseModel:
    return load_base(device="cpu")


@pytest.fixture
def own_folder(tiny_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of a tiny pipeline that a test may spoil."""
    return Path(shutil.copytree(tiny_folders["epsilon"], tmp_path / "own"))


def _save(kind: str, folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(KINDS.index(kind))
    velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    heads = (
        {"use_linear_projection": True, "attention_head_dim": [2, 4]} if kind == "sd2" else {"attention_head_dim": 4}
    )
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **heads,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    StableDiffusionPipeline(
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(**SCHEDULE, **({} if kind == "epsilon" else velocity)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def reference(base: BaseModel, adapter: Adapter | None = None, *, lora: Path | None = None) -> Any:
    """A plain diffusers pipeline of a base, with an adapter's files added the way diffusers' documentation says.

    Args:
        base: one that was loaded from a directory, or the embedded one.
        adapter: its tokens are added, and its LoRA from the bytes of `adapter.safetensors`.
        lora: a LoRA file to take instead.
    """
    from diffusers import DiffusionPipeline

    folder = EMBEDDED if base.ref.id == "embedded" else Path(base.ref.id)
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        files = encode(adapter, TrainingState(adapter.down_PRD, adapter.up_KR), base.layout)
        pipeline.load_lora_weights(load(lora.read_bytes() if lora else files[ADAPTER_FILE]))
        start = 0
        for end in ("", "_2") if hasattr(pipeline, "text_encoder_2") else ("",):
            start = _teach(
                getattr(pipeline, f"tokenizer{end}"), getattr(pipeline, f"text_encoder{end}"), adapter.tokens, start
            )
    return pipeline


def _teach(tokenizer: Any, encoder: Any, tokens: Mapping[str, Tensor], start: int) -> int:
    """Add the columns from `start` that are this encoder's, and return where the next one's begin."""
    add_tokens(tokenizer, {name: len(rows) for name, rows in tokens.items()})
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight.data
    stop: int = start + table.shape[1]
    for name, rows in tokens.items():
        table[tokenizer.convert_tokens_to_ids(spelled(name, len(rows)))] = rows[:, start:stop]
    return stop


def spelled(name: str, vectors: int) -> list[str]:
    """The added tokens of one concept, as diffusers' `load_textual_inversion` calls them."""
    return [f"<{name}>", *(f"<{name}>_{index}" for index in range(1, vectors))]


def add_tokens(tokenizer: Any, vectors: Mapping[str, int]) -> None:
    for name, count in vectors.items():
        tokenizer.add_tokens(spelled(name, count))


def some_adapter(
    layout: Layout, vectors: Mapping[str, int], *, rank: int = 3, alpha: float | None = None, seed: int = 0
) -> Adapter:
    """An adapter that changes much: random B and random tokens."""
    generator = torch.Generator().manual_seed(seed)
    fresh = new_adapter(layout, rank=rank, alpha=alpha, seed=seed)
    tokens = {n: 0.1 * torch.randn(count, layout.text_width, generator=generator) for n, count in vectors.items()}
    return Adapter(fresh.down_PRD, torch.randn(layout.total, rank, generator=generator), fresh.alpha, tokens)


def student_of(base: BaseModel, *, earlier: tuple[str, ...] = (), rank: int = 2, seed: int = 0) -> Student:
    """A student of `<new>` in the middle of its way: its LoRA is not zero, its parent knows `earlier`."""
    parent = some_adapter(base.layout, dict.fromkeys(earlier, 1), rank=rank, seed=seed)
    return Student(base, parent, Concept(name="new", noun="mug"), seed=seed)


def plan_of(base: BaseModel, config: LearningConfig, *, earlier: int = 0) -> Plan:
    """To learn `<my-mug>` on top of `<c0>`, `<c1>`, …, whose Fisher information is one everywhere."""
    names = [f"c{index}" for index in range(earlier)]
    parent = some_adapter(base.layout, dict.fromkeys(names, 1)) if names else new_adapter(base.layout, rank=3)
    ones = TrainingState(torch.ones_like(parent.down_PRD), torch.ones_like(parent.up_KR))
    return Plan(
        lineage="ann",
        concept=Concept(name="my-mug", noun="mug"),
        base=base.ref.id,
        base_ref=base.ref,
        intake_id="in-1",
        config=config,
        parent=parent,
        fisher=ones if names else None,
        earlier=tuple(Concept(name=name, noun=f"noun{name}") for name in names),
        run_id="r",
    )


def random_latents(base: BaseModel, count: int, seed: int = 0) -> Tensor:
    side = int(base.unet.config.sample_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, base.latent_channels, side, side, generator=generator)
