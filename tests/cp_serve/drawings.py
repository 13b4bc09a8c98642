"""Requests to draw, the engine that answers them, and a gate that holds the U-Net between two steps."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from cp_serve.batch import Drawing, Unet
from cp_serve.engine import Engine
from cp_serve.samplers import SAMPLERS, sampler_table
from cp_serve.schemas import GenerationRequest
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition
from tests.bases import some_adapter

PATIENCE = 300
GUIDANCE: float = GenerationRequest.model_fields["guidance_scale"].default
NEAR = 2
"""How far, of 255, a picture drawn in company may be from the same drawn alone."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What decides a picture."""

    prompt: str = "a fox"
    negative: str = ""
    adapter: Adapter | None = None
    seed: int = 0
    steps: int = 5
    guidance: float = GUIDANCE
    sampler: str = "ddim"
    person: str = ""

    def drawing(self, base: BaseModel) -> Drawing:
        prompts = [self.negative, self.prompt] if self.guidance > 1 else [self.prompt]
        side = int(base.unet.config.sample_size)
        noise = torch.randn(base.latent_channels, side, side, generator=torch.Generator().manual_seed(self.seed))
        table = sampler_table(base, self.sampler, self.steps)
        return Drawing(table, condition(base, prompts, self.adapter), self.guidance, noise, person=self.person)


def learned_like(base: BaseModel, seed: int) -> Adapter:
    """An adapter that bends the picture and does not drown it."""
    strong = some_adapter(base.layout, {"fox": 1, "robot": 2}, rank=4, seed=seed)
    return replace(strong, up_KR=strong.up_KR * 0.1)


def random_wishes(adapters: Sequence[Adapter | None], count: int, *, seed: int) -> list[Wish]:
    """Different people, prompts, step counts and guidance scales."""
    pick = random.Random(seed)
    wishes = []
    for _ in range(count):
        adapter = pick.choice(adapters)
        nouns = [f"<{name}>" for name in adapter.tokens] if adapter else ["fox", "robot", "red house"]
        wishes.append(
            Wish(
                prompt=f"{pick.choice(['a photo of a', 'two', ''])} {pick.choice(nouns)}",
                negative=pick.choice(["", "blurred"]),
                adapter=adapter,
                seed=pick.randrange(2**32),
                steps=pick.randint(1, 9),
                guidance=pick.choice([0.0, 1.0, 2.5, 5.0, 9.0]),
                sampler=pick.choice(SAMPLERS),
                person=pick.choice(["", "ann", "bob"]),
            )
        )
    return wishes


@contextmanager
def engine_of(
    base: BaseModel, *, max_batch: int = 16, max_queue: int = 64, unet: Unet | None = None
) -> Iterator[Engine]:
    engine = Engine(base, max_batch=max_batch, max_queue=max_queue, unet=unet)
    try:
        yield engine
    finally:
        engine.stop()


def draw(engine: Engine, *drawings: Drawing) -> list[Tensor]:
    engine.submit(drawings)
    return [drawing.picture.result(PATIENCE) for drawing in drawings]


def alone(base: BaseModel, wish: Wish) -> Tensor:
    with engine_of(base) as engine:
        return draw(engine, wish.drawing(base))[0]


def distance(one: Tensor, other: Tensor) -> int:
    """Largest difference of a channel of a pixel."""
    return int((one.int() - other.int()).abs().max())


class Gate:
    """Holds every step of a base's U-Net until it is let through."""

    def __init__(self, base: BaseModel) -> None:
        self._arrived, self._passes = threading.Semaphore(0), threading.Semaphore(0)
        self._open = False
        self._hook = base.unet.register_forward_pre_hook(self._hold)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()

    def _hold(self, *_: object) -> None:
        self._arrived.release()
        if not self._open:
            assert self._passes.acquire(timeout=PATIENCE)

    def arrived(self) -> None:
        """Wait until the next step is about to run."""
        assert self._arrived.acquire(timeout=PATIENCE)

    def let(self, steps: int = 1) -> None:
        """Let so many steps through."""
        self._passes.release(steps)

    def open(self) -> None:
        """Hold nothing any more."""
        self._open = True
        self._hook.remove()
        self.let(1000)
