"""Learning in memory on a tiny base, for tests that only want what comes out."""

from typing import Any

import torch

from cp_train.denoise import Denoising, LoopConfig, Pictures
from cp_train.loop import Loop
from cp_train.methods import Memory, find_method
from cp_train.phase import Shard
from cp_train.plan import LearningConfig
from cp_train.student import Student
from services.adapter import Adapter
from services.base_model import BaseModel
from services.manifest import Concept
from tests.bases import random_latents


def learned(
    base: BaseModel, method: str, parent: Adapter, name: str, *, weight: float | None = None, **settings: Any
) -> Student:
    """A student of `<name>` after its training steps; no Fisher information, no second phase."""
    kind = find_method(method)
    config = LearningConfig.for_method(method, weight=weight)
    loop = LoopConfig(**{"batch_size": 2, "warmup": 2, "lr": 0.02} | settings)
    concept = Concept(name=name, noun="mug")
    student = kind.student(base, parent, concept, seed=0)
    pictures = Pictures.of_one(random_latents(base, 2, seed=len(parent.tokens)), [f"a photo of a <{name}>"])
    phase = Denoising(student, student, pictures, loop, Shard(), token_only=kind.token_only)
    Loop(student, kind(Memory(parent, None), weight=config.weight), [phase]).run(lambda *_: None)
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    return student
