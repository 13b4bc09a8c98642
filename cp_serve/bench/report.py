"""The figures as a table and as plots."""

from pathlib import Path
from typing import Any

_AIMS = {
    "throughput_vs_set_adapters": "at least 2.5",
    "throughput_vs_load_lora_weights": "",
    "throughput_vs_static_batches": "at least 1.5",
    "p95_at_half_load_vs_static_batches": "at most 0.5",
    "overhead_fraction": "at most 0.1",
    "max_pixel_difference": "at most 2",
    "bytes_per_person": "the adapter's tensors",
    "measured_bytes_per_person": "",
}


def summary(results: dict[str, Any]) -> str:
    """Markdown: the ratios and what they are held against, then the raw figures."""
    lines = ["| figure | measured | aim |", "|---|---|---|"]
    lines += [f"| {name} | {results[name]:.4g} | {aim} |" for name, aim in _AIMS.items()]
    lines += ["", "| round | system | images a second | p50 s | p95 s |", "|---|---|---|---|---|"]
    for number, figures in enumerate(results["saturation"], 1):
        for name, row in figures.items():
            lines.append(
                f"| {number} | {name} | {row['images_per_second']:.3f} | {row['p50']:.2f} | {row['p95']:.2f} |"
            )
    half = results["half_load"]
    lines += ["", f"Half load: {half['requests_per_second']:.3f} requests a second (half of what (c) can do)."]
    lines += [f"- {name}: p50 {half[name]['p50']:.2f} s, p95 {half[name]['p95']:.2f} s" for name in _HALF]
    return "\n".join(lines) + "\n"


_HALF = ("ours", "static_batches")


def plot(results: dict[str, Any], out: Path) -> None:
    """`throughput.png` and `latency.png`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    names = list(results["saturation"][0])
    for number, figures in enumerate(results["saturation"]):
        heights = [figures[name]["images_per_second"] for name in names]
        axes.bar([place + 0.35 * number for place in range(len(names))], heights, 0.3, label=f"round {number + 1}")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("images a second")
    axes.legend()
    figure.savefig(out / "throughput.png", dpi=150)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for name in _HALF:
        seconds = results["half_load"][name]["latencies"]
        axes.step(seconds, [(place + 1) / len(seconds) for place in range(len(seconds))], label=name)
    axes.set_xlabel("seconds from request to picture, at half load")
    axes.set_ylabel("share of requests")
    axes.legend()
    figure.savefig(out / "latency.png", dpi=150)
    plt.close(figure)
