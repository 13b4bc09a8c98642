"""The figures for Stable Diffusion 1.5 in docs/operations.md, counted again on its layout: no weights, no GPU."""

import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cp_train.denoise import LoopConfig
from cp_train.evaluation.draw import STEPS
from cp_train.evaluation.evidence import FEW, GENERIC_PROMPTS, MOST, RIVALS
from cp_train.evaluation.metrics import TRIALS
from cp_train.task import SAMPLE_SEEDS
from tests.infra.files import ROOT, documents

DOCS = (ROOT / "docs" / "operations.md").read_text()
TERA, KEPT_TOKENS = 1e12, 77


@pytest.fixture(scope="module")
def networks() -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """U-Net, VAE and text encoder, without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        return (
            UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            AutoencoderKL(**vae),
            CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=KEPT_TOKENS, **text)),
        )


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters(networks: tuple[torch.nn.Module, ...]) -> None:
    millions = ", ".join(f"{parameters(network) / 1e6:.1f}" for network in networks)
    total = sum(map(parameters, networks)) * 4 / 1e9
    assert f"{millions} million: {total:.1f} GB in float32" in DOCS


def test_the_adapter(networks: tuple[torch.nn.Module, ...]) -> None:
    projections = [m for name, m in networks[0].named_modules() if re.search(r"attn2\.to_[kv]$", name)]
    count = sum(16 * (m.in_features + m.out_features) for m in projections)
    assert f"| {count:,} parameters, {count * 4 / 1e6:.1f} MB" in DOCS
    width = sum(m.out_features for m in projections)
    assert f"| {width * KEPT_TOKENS * 2 * 4 / 1e6:.1f} MB in float32 |" in DOCS


def test_work(networks: tuple[torch.nn.Module, ...]) -> None:
    unet, vae, _ = networks
    latent, context = torch.empty(1, 4, 64, 64, device="meta"), torch.empty(1, KEPT_TOKENS, 768, device="meta")
    picture, t = torch.empty(1, 3, 512, 512, device="meta"), torch.tensor(1, device="meta")
    work = []
    for run in (lambda: unet(latent, t, context), lambda: vae.decode(latent), lambda: vae.encode(picture)):
        with FlopCounterMode(display=False) as counter:
            run()
        work.append(counter.get_total_flops() / TERA)
    assert "{:.2f} TFLOP; decoding {:.2f}, encoding {:.2f} TFLOP".format(*work) in DOCS


def test_kept_for_the_backward_pass(networks: tuple[torch.nn.Module, ...]) -> None:
    """What autograd saves of one row, weights frozen, without attention's weights: the fused kernel saves none."""
    from diffusers.models.attention_processor import AttnProcessor

    unet = networks[0].requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    own = {storage(parameter) for parameter in unet.parameters()}
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    latent = torch.empty(1, 4, 64, 64, device="meta")
    context = torch.empty(1, KEPT_TOKENS, 768, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(latent, torch.tensor(1, device="meta"), context)
    sizes = {storage(x): x.untyped_storage().nbytes() for x in saved if storage(x) not in own and not is_attention(x)}
    assert f"| {sum(sizes.values()) / 1e9:.2f} GB in float32 (attention fused" in DOCS


def storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def is_attention(x: torch.Tensor) -> bool:
    """Softmax over the pixels: [heads, pixels, pixels]."""
    return x.dim() == 3 and x.shape[-1] == x.shape[-2]


PASS, DECODING = 0.803, 2.51
"""TFLOP of one U-Net pass of one picture, and of decoding it, as `test_work` counts them."""


def work_of_gate(concepts: int) -> float:
    """TFLOP of what the gate does beside the samples, with the n-th concept of a lineage."""
    judged = min(MOST, concepts - 1)
    pictures = 2 * len(GENERIC_PROMPTS) * FEW + judged * len(SAMPLE_SEEDS)
    rows = 2 * judged * len(SAMPLE_SEEDS) * TRIALS * (2 + min(RIVALS, judged - 1))
    return pictures * (STEPS * 2 * PASS + DECODING) + rows * PASS


def work_of(concepts: int) -> list[float]:
    """TFLOP of learning the n-th concept of a lineage: steps, Fisher pass, samples, gate, and all."""
    steps, fisher = LoopConfig().steps * 8 * 3 * PASS, 100 * 2 * (min(5, concepts - 1) + 2) * 3 * PASS
    samples = concepts * len(SAMPLE_SEEDS) * (STEPS * 2 * PASS + DECODING)
    parts = [steps, fisher, samples, work_of_gate(concepts)]
    return [*parts, sum(parts)]


def test_time_of_a_concept() -> None:
    """The table of times follows from the figures above it."""
    rows = re.findall(r"^\| (?:first|sixth|twentieth) \|(.*)\|$", DOCS, re.MULTILINE)
    assert len(rows) == 3
    for row, concepts in zip(rows, (1, 6, 20), strict=True):
        said, work = [cell.strip() for cell in row.split("|")], work_of(concepts)
        assert said[:5] == [f"{tera / 1e3:.1f}" for tera in work]
        for cell, peak in zip(said[5:], (30.3, 31.2, 156, 495), strict=True):
            seconds = work[-1] / (peak / 2)
            number, unit = cell.split()
            assert float(number) == pytest.approx(seconds / {"min": 60, "s": 1}[unit], rel=0.03)


def test_what_the_gate_draws_and_scores() -> None:
    pictures, rows = 2 * len(GENERIC_PROMPTS) * FEW, 2 * len(SAMPLE_SEEDS) * TRIALS * (2 + RIVALS)
    assert f"is {pictures} pictures of generic prompts with every concept, and of each earlier concept" in DOCS
    assert f"{MOST} at most, {len(SAMPLE_SEEDS)} pictures by its parent and up to {rows} rows" in DOCS


def test_cards_for_100_concepts_a_day() -> None:
    """The gate included: it is a sixth of the work or more."""
    hours = [100 * work_of(concepts)[-1] / (31.2 / 2) / 3600 for concepts in (6, 20)]
    sixth, twentieth = (f"{number:.0f}" for number in hours)
    assert f"about {sixth} GPU-hours if each is the sixth of its lineage, {twentieth} if each is the twentieth" in DOCS
    assert [math.ceil(number / 24) for number in hours] == [2, 2]
    assert "is the twentieth: two cards, four at a time (`maxReplicas: 4`) for the peaks" in DOCS
    workers = documents("kuberay/training.yaml")
    assert max(group["maxReplicas"] for d in workers for group in d["spec"].get("workerGroupSpecs", ())) == 4
