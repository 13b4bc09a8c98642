"""The run: rounds at saturation in turn, half load, memory, and the pictures compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import psutil
import torch

from cp_serve.bench.systems import CONCEPT, Ours, Plain, StaticBatches, System
from cp_serve.bench.traffic import PROMPTS, Traffic, Wish
from services import machine
from services.adapter import Adapter, new_adapter
from services.base_model import BaseModel, load_base
from services.errors import InputError

_LEAST, _MOST = 64, 384
_COST = 8.5
"""Requests of (a) that one request of everybody's costs, all rounds and half load included: a guess, for the budget."""
_COMPARED = 6  # pictures
OURS, STATIC = "ours", "static_batches"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured, and how much of it.

    Attributes:
        requests: of one round at saturation, and at half load; 0: as many as `minutes` are expected to be enough for.
        rounds: at saturation; the systems take turns in each.
    """

    base: str = "embedded"
    people: int = 32
    versions: int = 8
    requests: int = 0
    minutes: float = 10.0
    rounds: int = 2
    steps: int = 20
    rank: int = 16
    max_batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.people, self.versions, self.rounds, self.steps, self.max_batch, self.rank) < 1:
            raise InputError("people, versions, rounds, steps, max-batch and rank are at least 1.")


Say = Callable[[str], None]
Results = dict[str, Any]


def measure(config: Config, say: Say, keep: Callable[[Results], None] = lambda _: None) -> Results:
    """All figures, by the names that `results.json` has; `keep` is given what there is after each part."""
    base = load_base(config.base)
    found: Results = {"config": vars(config), "machine": machine.describe(), "load_before": machine.load()}
    found["measured_bytes_per_person"] = _memory_per_adapter(base, config.rank)
    adapters = [some_adapter(base, config.rank, number) for number in range(config.versions)]
    found["bytes_per_person"] = adapters[0].bytes()
    systems = _systems(base, adapters, config)
    try:
        found["max_pixel_difference"] = _apart(systems, config)
        one = found["seconds_of_one"] = min(_seconds_of_one(systems["set_adapters"]) for _ in range(3))
        found["requests"] = count = _requests(config, one)
        say(f"one picture with plain diffusers takes {one:.2f} s; {count} requests a round")
        found["saturation"] = rounds = []
        for number in range(config.rounds):
            rounds.append(_round(systems, config, count, think=one / 2, number=number, say=say))
            keep(found)
        rate = median(figures[STATIC]["images_per_second"] for figures in rounds) / 2
        half = _half_load(systems, config, count, rate=rate, say=say)
        found["half_load"] = {"requests_per_second": rate, **half}
    finally:
        for system in systems.values():
            system.close()
    found["load_after"] = machine.load()
    return {**_ratios(rounds, half), **found}


def _ratios(rounds: list[dict[str, dict[str, Any]]], half: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Medians over rounds, each round's ratio between neighbours in time."""

    def against(other: str) -> float:
        rates = [(figures[OURS]["images_per_second"], figures[other]["images_per_second"]) for figures in rounds]
        return float(median(ours / theirs for ours, theirs in rates))

    return {
        "throughput_vs_set_adapters": against("set_adapters"),
        "throughput_vs_load_lora_weights": against("load_lora_weights"),
        "throughput_vs_static_batches": against(STATIC),
        "p95_at_half_load_vs_static_batches": half[OURS]["p95"] / half[STATIC]["p95"],
        "overhead_fraction": median(figures[OURS]["profile"]["neither"] for figures in rounds),
        "others_cpu": max([row["others_cpu"] for figures in [*rounds, half] for row in figures.values()]),
    }


def _systems(base: BaseModel, adapters: list[Adapter], config: Config) -> dict[str, System]:
    steps, batch = config.steps, config.max_batch
    return {
        OURS: Ours(base, adapters, steps=steps, max_batch=batch),
        "set_adapters": Plain(base, adapters, steps=steps),
        "load_lora_weights": Plain(base, adapters, steps=steps, reload=True),
        STATIC: StaticBatches(base, adapters, steps=steps, max_batch=batch),
    }


def _requests(config: Config, one: float) -> int:
    """How many requests a round has, if one picture of (a) takes `one` second."""
    return config.requests or min(_MOST, max(_LEAST, round(60 * config.minutes / (_COST * one))))


def _round(
    systems: dict[str, System], config: Config, count: int, *, think: float, number: int, say: Say
) -> dict[str, dict[str, Any]]:
    """Every system under the same saturating traffic, in an order that turns with the round."""
    names = list(systems) if number % 2 == 0 else list(reversed(systems))
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        traffic = Traffic(people=config.people, versions=config.versions, count=count, seed=config.seed, think=think)
        figures[name] = row = _serve(systems[name], traffic)
        say(f"round {number + 1}, {name}: {row['images_per_second']:.2f} images a second")
    return {name: figures[name] for name in systems}


def _half_load(
    systems: dict[str, System], config: Config, count: int, *, rate: float, say: Say
) -> dict[str, dict[str, Any]]:
    """The engine and (c) under the same Poisson arrivals."""
    figures: dict[str, dict[str, Any]] = {}
    for name in (OURS, STATIC):
        traffic = Traffic(people=config.people, versions=config.versions, count=count, seed=config.seed + 1, rate=rate)
        figures[name] = row = _serve(systems[name], traffic)
        say(f"half load, {name}: p95 {row['p95']:.2f} s")
    return figures


def _serve(system: System, traffic: Traffic) -> dict[str, Any]:
    """What comes of some traffic."""
    others, begun = machine.Others(), time.monotonic()
    seconds = sorted(system.serve(traffic))
    wall = time.monotonic() - begun
    row = {
        "images_per_second": len(seconds) / wall,
        "seconds": wall,
        **{f"p{share}": _percentile(seconds, share) for share in (50, 95, 99)},
        "together": fmean(system.together),
        "others_cpu": others.share(),
        "latencies": seconds,
    }
    return row | ({"profile": _profile(system, wall)} if isinstance(system, Ours) else {})


def _profile(system: Ours, wall: float) -> dict[str, float]:
    """Shares of the wall time in which each network ran, and in which neither U-Net nor VAE did; they overlap."""
    shares = {name: seconds / wall for name, seconds in system.profile.seconds().items()}
    return shares | {"neither": 1 - system.profile.covered("unet", "vae") / wall}


def _percentile(ordered: list[float], share: int) -> float:
    """The least value that so many of 100 do not exceed."""
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def _seconds_of_one(system: System) -> float:
    begun = time.monotonic()
    system.draw(Wish(0, 0, PROMPTS[0], 0))
    return time.monotonic() - begun


def _apart(systems: dict[str, System], config: Config) -> int:
    """How far, of 255, the engine's pictures are from plain diffusers' at most; all systems are warm then."""
    wishes = [Wish(0, seed % config.versions, PROMPTS[seed % len(PROMPTS)], seed) for seed in range(_COMPARED)]
    apart = 0
    for wish in wishes:
        ours, plain = (systems[name].draw(wish).int() for name in (OURS, "set_adapters"))
        apart = max(apart, int((ours - plain).abs().max()))
    for name in ("load_lora_weights", STATIC):
        systems[name].draw(wishes[0])
    return apart


def _memory_per_adapter(base: BaseModel, rank: int, count: int = 256) -> float:
    """Bytes by which this process grows for each of many versions; before it has memory to use again."""
    process = psutil.Process()
    before = process.memory_info().rss
    held = [some_adapter(base, rank, 1000 + number) for number in range(count)]
    return float(process.memory_info().rss - before) / len(held)


def some_adapter(base: BaseModel, rank: int, seed: int) -> Adapter:
    """A version that bends pictures: random B, and a random token."""
    generator = torch.Generator().manual_seed(seed)
    fresh = new_adapter(base.layout, rank=rank, seed=seed)
    up = 0.1 * torch.randn(base.layout.total, rank, generator=generator)
    token = 0.1 * torch.randn(1, base.layout.text_width, generator=generator)
    return Adapter(fresh.down_PRD, up, fresh.alpha, {CONCEPT: token}).to(base.device)
