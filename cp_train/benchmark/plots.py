"""Plots of a comparison, each a file beside the report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cp_train.benchmark.results import Result, Row, column
from cp_train.benchmark.tables import labels
from cp_train.evaluation.distances import similarity
from cp_train.evaluation.statistics import Interval, Run, interval, over_runs, units

Series = Mapping[int, Sequence[float]]
"""x -> independent values there (`statistics.units`)."""
_PALETTE = colormaps["tab10"].colors + colormaps["Dark2"].colors  # type: ignore[attr-defined]
_WIDE = 20
"""Times the smallest value: what spreads further is shown on a logarithmic axis."""
_STYLES = ("-", "--", ":")


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each contender, in the order met."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.cell.label, []).append(result)
    return found


def save(figure: Any, path: Path) -> None:
    """Write a figure; the same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


def lines(series: Mapping[str, Series], path: Path, *, x: str, y: str, title: str) -> None:
    """One line a contender with a band of its 95% interval."""
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    for place, (label, points) in enumerate(series.items()):
        _line(axes, place, label, points)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(_around([line.get_ydata() for line in axes.lines]))
    _dress(axes, x, y, title)
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    save(figure, path)


def _line(axes: Any, place: int, label: str, points: Series) -> None:
    known = [(at, found) for at in sorted(points) if (found := interval(list(points[at])))]
    if not known:
        return
    xs = [at for at, _ in known]
    colour, style = _look(place)
    axes.plot(xs, [f.mean for _, f in known], style, color=colour, marker="o", markersize=3, lw=1.5, label=label)
    axes.fill_between(xs, [f.low for _, f in known], [f.high for _, f in known], color=colour, alpha=0.12, lw=0)


def _around(drawn: Sequence[Any]) -> tuple[float, float] | None:
    """Limits that show every mean with room around; bands of two or three runs may reach far beyond."""
    if not drawn:
        return None
    values = np.concatenate([np.asarray(line, float) for line in drawn])
    low, high = float(values.min()), float(values.max())
    room = 0.6 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _look(place: int) -> tuple[Any, str]:
    return _PALETTE[place % len(_PALETTE)], _STYLES[place // len(_PALETTE) % len(_STYLES)]


def _dress(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def gathered(
    results: Sequence[Result], points: Callable[[Result], Mapping[int, float]]
) -> dict[str, dict[int, list[float]]]:
    """The points of every run by contender and x, runs of one order as one."""
    found: dict[str, dict[int, list[float]]] = {}
    for label, runs in groups(results).items():
        mine: dict[int, dict[Run, float]] = {}
        for run in runs:
            for at, value in points(run).items():
                mine.setdefault(at, {})[run.cell.paired] = value
        found[label] = {at: units(values) for at, values in mine.items()}
    return found


def retained(result: Result) -> dict[int, float]:
    """Tasks since a concept was learned -> change of its pictures' similarity to its references, mean over concepts."""

    def change(run: Result, task: int, concept: int) -> float | None:
        first, now = (_similarity(run, at, concept) for at in (concept, task))
        return None if first is None or now is None else now - first

    return _by_age(result, change)


def loss_rise(result: Result) -> dict[int, float]:
    """Tasks since a concept was learned -> how much its denoising loss has risen, mean over concepts."""
    return _by_age(result, lambda run, task, j: _loss(run, task, j) - _loss(run, j, j))


def _by_age(result: Result, value: Callable[[Result, int, int], float | None]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for task in result.records:
        for concept in range(1, task + 1):
            known = value(result, task, concept) if concept in result.records else None
            if known is not None:
                found.setdefault(task - concept, []).append(known)
    return {age: float(np.mean(values)) for age, values in found.items()}


def _similarity(result: Result, task: int, concept: int) -> float | None:
    drawn = result.drawn(task, concept, "glimpse")
    return None if drawn is None else similarity(result.real[concept], drawn)


def _loss(result: Result, task: int, concept: int) -> float:
    return float(result.records[task].figures["losses"][concept - 1])


def accuracy(result: Result) -> dict[int, float]:
    """Task -> mean accuracy of the diffusion classifier over the concepts so far."""
    known = {n: record.figures["dc"] for n, record in result.records.items() if "dc" in record.figures}
    return {n: float(np.mean(values)) for n, values in known.items()}


def seconds(result: Result) -> dict[int, float]:
    """Task -> CPU seconds of its training and consolidation."""
    return {n: record.figures["cpu_seconds"] for n, record in result.records.items()}


def matrices(results: Sequence[Result], path: Path, *, kind: str) -> None:
    """Concept x task for each contender, mean over its runs: `similarity` to the references or denoising `loss`."""
    value = _similarity if kind == "similarity" else _loss
    found = {label: _matrix(runs, value) for label, runs in groups(results).items()}
    across = min(4, len(found))
    figure = Figure(figsize=(2.6 * across + 0.9, 2.7 * -(-len(found) // across)))
    axes = figure.subplots(-(-len(found) // across), across, squeeze=False)
    known = np.concatenate([m[np.isfinite(m)] for m in found.values()])
    shades = {"vmin": known.min(), "vmax": known.max(), "cmap": "viridis" if kind == "similarity" else "viridis_r"}
    image: Any = None
    for ax, (label, matrix) in zip(axes.flat, found.items(), strict=False):
        image = ax.imshow(matrix, **shades)
        ax.set_title(label, fontsize=9)
        ax.set(xlabel="after task", ylabel="concept")
        ticks = sorted({0, len(matrix) // 2, len(matrix) - 1})
        ax.set(xticks=ticks, yticks=ticks, xticklabels=[t + 1 for t in ticks], yticklabels=[t + 1 for t in ticks])
    for ax in axes.flat[len(found) :]:
        ax.axis("off")
    figure.tight_layout()
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, label=kind)
    save(figure, path)


def _matrix(runs: Sequence[Result], value: Callable[[Result, int, int], float | None]) -> Any:
    count = max(run.count for run in runs)
    total, seen = np.zeros((count, count)), np.zeros((count, count))
    for run in runs:
        for task in run.records:
            for concept in range(1, task + 1):
                known = value(run, task, concept)
                if known is not None:
                    total[concept - 1, task - 1] += known
                    seen[concept - 1, task - 1] += 1
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def norms(results: Sequence[Result], path: Path) -> None:
    """Logarithm of the adapter's L1 norm over all steps of a sequence, one line a contender (its first run)."""
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    for place, (label, runs) in enumerate(groups(results).items()):
        xs, ys, start = [], [], 0
        for record in runs[0].records.values():
            xs += [start + step for step, _ in record.figures["norms"]]
            ys += [norm for _, norm in record.figures["norms"]]
            start += len(record.figures["training_losses"])
        colour, style = _look(place)
        axes.plot(xs, ys, style, color=colour, lw=1.2, label=label)
    _dress(axes, "training step, tasks one after the other", "ln of the L1 norm of dW", "Size of the adapter")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    save(figure, path)


def scatter(rows: Sequence[Row], path: Path, *, x: str, y: str, title: str) -> None:
    """Two figures against each other: a cross of both intervals for each contender."""
    figure = Figure(figsize=(7.5, 4.8))
    axes = figure.subplots()
    shown: list[tuple[float, float]] = []
    for place, label in enumerate(labels(rows)):
        across, up = (over_runs(column(rows, label, name)) for name in (x, y))
        if across and up:
            colour, _ = _look(place)
            axes.errorbar(
                across.mean, up.mean, xerr=_bar(across), yerr=_bar(up), fmt="o", color=colour, ms=6, lw=1, alpha=0.85
            )
            axes.plot([], [], "o", color=colour, label=label)
            shown.append((across.mean, up.mean))
    for axis, values in zip("xy", zip(*shown, strict=True), strict=False):
        wide = max(values) > _WIDE * min((abs(value) for value in values if value), default=max(values))
        axes.set(**({f"{axis}scale": "symlog"} if wide else {f"{axis}lim": _around([values])}))
    _dress(axes, x, y, title)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    save(figure, path)


def _bar(found: Interval) -> float:
    return found.half or 0.0
