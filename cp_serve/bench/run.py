"""The run: rounds at saturation in turn, half load, memory, and the pictures compared."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil
import torch

from cp_serve.bench.systems import CONCEPT, Ours, Plain, StaticBatches, System
from cp_serve.bench.traffic import Traffic, Wish
from services.adapter import Adapter, new_adapter
from services.base_model import BaseModel, load_base


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured, and how much of it.

    Attributes:
        requests: of one round at saturation, and at half load.
        rounds: at saturation; the systems take turns in each.
    """

    base: str = "embedded"
    people: int = 32
    versions: int = 8
    requests: int = 96
    rounds: int = 2
    steps: int = 20
    rank: int = 16
    max_batch: int = 16
    seed: int = 0


Say = Callable[[str], None]


def measure(config: Config, say: Say) -> dict[str, Any]:
    """All figures, by the names that `results.json` has."""
    base = load_base(config.base)
    memory = _memory_per_adapter(base, config.rank)
    adapters = [_adapter(base, config.rank, number) for number in range(config.versions)]
    systems = _systems(base, adapters, config)
    try:
        apart = max(_apart(systems, Wish(0, version, "a photo of a {}", version)) for version in range(2))
        think = _seconds_of_one(systems["set_adapters"]) / 2
        with _unet_seconds(base) as unet:
            rounds = [
                _round(systems, config, think=think, number=number, unet=unet, say=say)
                for number in range(config.rounds)
            ]
        rates = {name: [figures[name]["images_per_second"] for figures in rounds] for name in systems}
        rate = median(rates["static_batches"]) / 2
        half = {name: _half_load(systems[name], config, rate, say, name) for name in ("ours", "static_batches")}
    finally:
        for system in systems.values():
            system.close()
    overhead = median(figures["ours"]["outside_unet"] for figures in rounds)
    return {
        **_ratios(rates, half),
        "overhead_fraction": overhead,
        "max_pixel_difference": apart,
        "bytes_per_person": adapters[0].bytes(),
        "measured_bytes_per_person": memory,
        "config": vars(config),
        "saturation": rounds,
        "half_load": {"requests_per_second": rate, **half},
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__, "load": psutil.getloadavg()},
    }


def _ratios(rates: dict[str, list[float]], half: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Medians over rounds, each round's ratio between neighbours in time."""

    def against(other: str) -> float:
        return median(ours / theirs for ours, theirs in zip(rates["ours"], rates[other], strict=True))

    return {
        "throughput_vs_set_adapters": against("set_adapters"),
        "throughput_vs_load_lora_weights": against("load_lora_weights"),
        "throughput_vs_static_batches": against("static_batches"),
        "p95_at_half_load_vs_static_batches": half["ours"]["p95"] / half["static_batches"]["p95"],
    }


def _systems(base: BaseModel, adapters: list[Adapter], config: Config) -> dict[str, System]:
    steps, batch = config.steps, config.max_batch
    return {
        "ours": Ours(base, adapters, steps=steps, max_batch=batch),
        "set_adapters": Plain(base, adapters, steps=steps),
        "load_lora_weights": Plain(base, adapters, steps=steps, reload=True),
        "static_batches": StaticBatches(base, adapters, steps=steps, max_batch=batch),
    }


def _round(
    systems: dict[str, System], config: Config, *, think: float, number: int, unet: dict[str, float], say: Say
) -> dict[str, dict[str, Any]]:
    """Every system under the same saturating traffic, in an order that turns with the round."""
    names = list(systems) if number % 2 == 0 else list(reversed(systems))
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        traffic = Traffic(
            people=config.people, versions=config.versions, count=config.requests, seed=config.seed, think=think
        )
        unet.clear()
        begun = time.monotonic()
        seconds = systems[name].serve(traffic)
        wall = time.monotonic() - begun
        figures[name] = {"images_per_second": len(seconds) / wall, "seconds": wall, **_latency(seconds)}
        if name == "ours":
            figures[name]["outside_unet"] = 1 - unet["seconds"] / wall
        say(f"round {number + 1}, {name}: {figures[name]['images_per_second']:.2f} images a second")
    return figures


def _half_load(system: System, config: Config, rate: float, say: Say, name: str) -> dict[str, Any]:
    traffic = Traffic(
        people=config.people, versions=config.versions, count=config.requests, seed=config.seed + 1, rate=rate
    )
    seconds = system.serve(traffic)
    figures = {**_latency(seconds), "latencies": sorted(seconds)}
    say(f"half load, {name}: p95 {figures['p95']:.2f} s")
    return figures


def _latency(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}


def _seconds_of_one(system: System) -> float:
    wish = Wish(0, 0, "a photo of a {}", 0)
    begun = time.monotonic()
    system.draw(wish)
    return time.monotonic() - begun


def _apart(systems: dict[str, System], wish: Wish) -> int:
    """How far, of 255, the engine's picture is from plain diffusers'; both are warm then."""
    ours, plain = (systems[name].draw(wish).int() for name in ("ours", "set_adapters"))
    for name in ("load_lora_weights", "static_batches"):
        systems[name].draw(wish)
    return int((ours - plain).abs().max())


@contextmanager
def _unet_seconds(base: BaseModel) -> Iterator[dict[str, float]]:
    """Wall time inside the engine's U-Net; the pipelines have their own."""
    spent: dict[str, float] = defaultdict(float)
    begun = [0.0]
    before = base.unet.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.monotonic()))

    def after(*_: object) -> None:
        spent["seconds"] += time.monotonic() - begun[0]

    handle = base.unet.register_forward_hook(after)
    try:
        yield spent
    finally:
        before.remove()
        handle.remove()


def _memory_per_adapter(base: BaseModel, rank: int, count: int = 256) -> float:
    """Bytes by which this process grows for each of many versions; before it has memory to use again."""
    process = psutil.Process()
    before = process.memory_info().rss
    held = [_adapter(base, rank, 1000 + number) for number in range(count)]
    return float(process.memory_info().rss - before) / len(held)


def _adapter(base: BaseModel, rank: int, seed: int) -> Adapter:
    """A version that bends pictures: random B, and a random token."""
    generator = torch.Generator().manual_seed(seed)
    fresh = new_adapter(base.layout, rank=rank, seed=seed)
    up = 0.1 * torch.randn(base.layout.total, rank, generator=generator)
    token = 0.1 * torch.randn(1, base.layout.text_width, generator=generator)
    return Adapter(fresh.down_PRD, up, fresh.alpha, {CONCEPT: token}).to(base.device)
