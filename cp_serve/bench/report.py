"""The figures as Markdown, fit to stand in a longer document, and as plots beside it."""

import operator
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services import machine

_AIMS: Mapping[str, tuple[str, Callable[[float, float], bool], float] | None] = {
    "throughput_vs_set_adapters": ("at least", operator.ge, 2.5),
    "throughput_vs_load_lora_weights": None,
    "throughput_vs_static_batches": ("at least", operator.ge, 1.5),
    "p95_at_half_load_vs_static_batches": ("at most", operator.le, 0.5),
    "overhead_fraction": ("at most", operator.le, 0.1),
    "max_pixel_difference": ("at most", operator.le, 2.0),
}
_HALF = ("ours", "static_batches")
_SYSTEMS = {
    "ours": "the engine",
    "set_adapters": "(a) plain diffusers, `set_adapters`",
    "load_lora_weights": "(b) plain diffusers, `load_lora_weights`",
    "static_batches": "(c) static batches of one version",
}
_BUSY = 0.1
_WHAT = """\
{people} people with {versions} versions between them, rank {rank}, {steps} steps of DDIM with guidance 5, at most
{max_batch} images together. At saturation everybody asks again a moment (exponential, {think} s on average) after
getting a picture, so that never more than {people} requests wait; {requests} requests a round. At half load requests
are Poisson arrivals at half of the rate that (c) can do, whatever the system does. (a) and (b) draw one request at a
time; (c) draws together whoever waits for the version of whoever has waited longest. A ratio is the median over rounds.
`overhead_fraction` is the share of the time at saturation in which neither U-Net nor VAE of the engine ran.
`max_pixel_difference` is of 255, from (a), over six pictures."""


def summary(results: Mapping[str, Any], command: Sequence[str]) -> str:
    """The section: how it was measured, the ratios and what they are held against, then the raw figures."""
    config, first = results["config"], results["saturation"][0]
    think = f"{results['seconds_of_one'] / 2:.2f}"
    parts = [
        "# Serving",
        f"`{shlex.join(command)}`. {_machine(results)}",
        _WHAT.format(**(config | {"requests": results["requests"], "think": think})),
        _table(["figure", "measured", "aim", ""], map(_judged(results), _AIMS)),
        _saturation(results["saturation"]),
        "![throughput](throughput.png)",
        _half_load(results["half_load"]),
        "![latency at half load](latency.png)",
        _profile([figures["ours"]["profile"] for figures in results["saturation"]], first["ours"]["together"]),
        _memory(results),
    ]
    return "\n\n".join(parts) + "\n"


def _machine(results: Mapping[str, Any]) -> str:
    told, others = results["machine"], results["others_cpu"]
    load = (results[when][0] for when in ("load_before", "load_after"))
    state = f"{machine.sentence(told, *load)}; other processes took at most {others:.0%} of the CPU"
    warning = " **The machine was not idle: the figures are not to be relied on.**" if others > _BUSY else ""
    return f"{state}.{warning}"


def _judged(results: Mapping[str, Any]) -> Callable[[str], list[str]]:
    def row(name: str) -> list[str]:
        value, aim = results[name], _AIMS[name]
        if aim is None:
            return [f"`{name}`", f"{value:.3g}", "", ""]
        words, holds, bound = aim
        return [f"`{name}`", f"{value:.3g}", f"{words} {bound:g}", "met" if holds(value, bound) else "missed"]

    return row


def _saturation(rounds: Sequence[Mapping[str, Any]]) -> str:
    head = ["round", "at saturation", "images a second", "drawn together", "p50 s", "p95 s", "CPU of others"]
    rows = [
        [
            str(number),
            _SYSTEMS[name],
            f"{row['images_per_second']:.2f}",
            f"{row['together']:.1f}",
            f"{row['p50']:.2f}",
            f"{row['p95']:.2f}",
            f"{row['others_cpu']:.0%}",
        ]
        for number, figures in enumerate(rounds, 1)
        for name, row in figures.items()
    ]
    return _table(head, rows)


def _half_load(half: Mapping[str, Any]) -> str:
    head = [f"at {half['requests_per_second']:.2f} requests a second", "p50 s", "p95 s", "p99 s", "CPU of others"]
    rows = [
        [_SYSTEMS[name], *(f"{half[name][share]:.2f}" for share in ("p50", "p95", "p99")), _percent(half[name])]
        for name in _HALF
    ]
    return _table(head, rows)


def _percent(row: Mapping[str, Any]) -> str:
    return f"{row['others_cpu']:.0%}"


def _profile(rounds: Sequence[Mapping[str, float]], together: float) -> str:
    """Shares of the wall time at saturation; networks run beside one another."""
    names = {"unet": "U-Net", "vae": "VAE decoder", "text_encoder": "text encoder", "neither": "neither U-Net nor VAE"}
    rows = [[meaning, *(f"{profile[name]:.1%}" for profile in rounds)] for name, meaning in names.items()]
    head = ["share of the engine's time", *(f"round {number}" for number in range(1, len(rounds) + 1))]
    return f"{_table(head, rows)}\n\nSteps of the U-Net had {together:.1f} images on average."


def _memory(results: Mapping[str, Any]) -> str:
    counted, measured = results["bytes_per_person"], results["measured_bytes_per_person"]
    return (
        f"One more person's version takes {measured / 1024:.0f} KiB of memory (mean of 256, by what the process grew); "
        f"its key and value weights and its concept's embedding are {counted / 1024:.0f} KiB."
    )


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(results: Mapping[str, Any], out: Path) -> None:
    """`throughput.png` and `latency.png`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    rounds, names = results["saturation"], list(results["saturation"][0])
    width = 0.8 / len(rounds)
    for number, figures in enumerate(rounds):
        heights = [figures[name]["images_per_second"] for name in names]
        places = [place + width * number for place in range(len(names))]
        axes.bar(places, heights, width, label=f"round {number + 1}")
    axes.set_xticks([place + width * (len(rounds) - 1) / 2 for place in range(len(names))], names)
    axes.set_ylabel("images a second")
    axes.legend()
    figure.savefig(out / "throughput.png", dpi=150)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for name in _HALF:
        seconds = results["half_load"][name]["latencies"]
        axes.step(seconds, [(place + 1) / len(seconds) for place in range(len(seconds))], where="post", label=name)
    axes.set_xlabel("seconds from request to picture, at half load")
    axes.set_ylabel("share of requests")
    axes.legend()
    figure.savefig(out / "latency.png", dpi=150)
    plt.close(figure)
