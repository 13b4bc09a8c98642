"""The point of it all, on the embedded base: two concepts in a row, from seeds, two dozen steps each."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image
from torch import Tensor

from cp_train.data import cached_latents
from cp_train.denoise import Denoising, LoopConfig, Pictures
from cp_train.evaluation.metrics import denoising_loss
from cp_train.fisher import FisherConfig, fisher_information
from cp_train.loop import Loop
from cp_train.methods import Memory, find_method
from cp_train.methods.kv import protect
from cp_train.phase import Shard
from cp_train.prompts import TEMPLATES, concept_prompts, prior_prompts, protected_prompts
from cp_train.student import Student
from services.adapter import Adapter, TrainingState, new_adapter
from services.base_model import BaseModel
from services.manifest import Concept

SAMPLES = Path(__file__).parents[3] / "infra" / "samples"
FOX, ROBOT = (Concept(name=name, noun=name) for name in ("fox", "robot"))
SEEDS = (0, 2, 3, 4)
CONFIG = LoopConfig(steps=24, batch_size=4, warmup=2, lr=0.01, token_lr=0.1)


def latents_of(base: BaseModel, concept: Concept) -> Tensor:
    images = [Image.open(path).convert("RGB") for path in sorted((SAMPLES / concept.name).glob("*.png"))[:3]]
    return cached_latents(base, images, crops=0, seed=0)


def learned(
    base: BaseModel,
    concept: Concept,
    method: str,
    parent: Adapter,
    fisher: TrainingState | None,
    *,
    kv_ridge: float = 0.03,
    seed: int = 0,
) -> Student:
    student = Student(base, parent, concept, seed=0)
    old = protected_prompts(TEMPLATES, [FOX] if parent.tokens else [], 64, 0.5, torch.Generator().manual_seed(0))
    memory = Memory(parent, fisher, protect(base, student.tokenize([*old[0], *old[1]]), parent))
    pictures = Pictures.of_one(latents_of(base, concept), concept_prompts(TEMPLATES, concept))
    phase = Denoising(student, student, pictures, replace(CONFIG, seed=seed), Shard())
    chosen = find_method(method)(memory, weight=0.5, kv_weight=100.0, kv_ridge=kv_ridge)
    Loop(student, chosen, [phase]).run(lambda *_: None)
    return student


def loss(base: BaseModel, student: Student, concept: Concept) -> float:
    """Denoising loss of a concept's pictures over fixed timesteps and noise."""
    prompt = f"a photo of a <{concept.name}>"
    return denoising_loss(base, student.adapter(), latents_of(base, concept), prompt, repeats=6)


@pytest.fixture(scope="module")
def fox(embedded_base: BaseModel) -> Student:
    return learned(embedded_base, FOX, "finetune", new_adapter(embedded_base.layout, rank=4), None)


def test_a_few_steps_bring_the_loss_of_a_concept_down(embedded_base: BaseModel, fox: Student) -> None:
    untrained = Student(embedded_base, new_adapter(embedded_base.layout, rank=4), FOX, seed=0)
    assert loss(embedded_base, fox, FOX) < 0.95 * loss(embedded_base, untrained, FOX)


def test_ewc_dc_and_kv_forget_much_less_than_finetuning_and_still_learn(embedded_base: BaseModel, fox: Student) -> None:
    prompts = [form[0] for form in (concept_prompts(TEMPLATES, FOX), prior_prompts(TEMPLATES, FOX))]
    config = FisherConfig(batches=4)
    fisher = fisher_information(fox, latents_of(embedded_base, FOX), lambda _: prompts, config, seed=0)
    before = loss(embedded_base, fox, FOX)
    after = {m: learned(embedded_base, ROBOT, m, fox.adapter(), fisher) for m in ("finetune", "ewc_dc", "kv")}
    forgotten = {method: loss(embedded_base, student, FOX) - before for method, student in after.items()}
    assert forgotten["finetune"] > 0.01
    new = Student(embedded_base, fox.adapter(), ROBOT, seed=0)
    for method in ("ewc_dc", "kv"):
        assert forgotten[method] < forgotten["finetune"] / 3
        assert loss(embedded_base, after[method], ROBOT) < 0.99 * loss(embedded_base, new, ROBOT)
        assert torch.isfinite(after[method].up_KR).all()


def test_in_coordinates_stretched_where_nothing_is_protected_kv_learns_more_and_forgets_no_more(
    embedded_base: BaseModel, fox: Student
) -> None:
    def losses(ridge: float, seed: int) -> tuple[float, float]:
        student = learned(embedded_base, ROBOT, "kv", fox.adapter(), None, kv_ridge=ridge, seed=seed)
        return loss(embedded_base, student, ROBOT), loss(embedded_base, student, FOX)

    # So few steps are a noisy matter: what is compared are means.
    found = [map(fmean, zip(*(losses(ridge, seed) for seed in SEEDS), strict=True)) for ridge in (0.0, 0.03)]
    (plain, plain_fox), (stretched, stretched_fox) = found
    untrained = loss(embedded_base, Student(embedded_base, fox.adapter(), ROBOT, seed=0), ROBOT)
    assert untrained - stretched > 1.5 * (untrained - plain)
    assert stretched_fox < plain_fox + 0.002
