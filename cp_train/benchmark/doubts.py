"""What the paper's reviewers doubted, each answered with a figure from the runs that there are."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas

from cp_train.benchmark import plots
from cp_train.benchmark.examine import correct
from cp_train.benchmark.results import Result, Row, column
from cp_train.benchmark.tables import Figure, differences, markdown, number, on_common_runs, shown, signed
from cp_train.evaluation.statistics import Run, interval, over_runs, paired, units

FACTORS = (
    ("none", "finetune", "dsc"),
    ("EWC", "ewc", "dsc_ewc"),
    ("EWC DC", "ewc_dc", "dsc_ewc_dc"),
    ("kv", "kv", "dsc_kv"),
    ("EWC DC + kv", "ewc_dc_kv", "dsc_ewc_dc_kv"),
)
"""Penalty, the method with it alone, and the method with it and DSC."""
_INTERACTING = ("A_MMD", "F_MMD", "F_MMD_unseen")
_K = re.compile(r"ewc_dc:fisher\.earlier=(\d+)")
COMPARED = (
    Figure("A_MMD", "A_MMD", "↓"),
    Figure("F_MMD", "F_MMD", "↓"),
    Figure("F_MMD_unseen", "F_MMD unseen", "↓"),
    Figure("base_drift", "base drift", "↓"),
    Figure("dc_accuracy", "DC accuracy", "↑"),
    Figure("cpu_seconds_per_task", "CPU seconds a task", "↓"),
)
_HERE = "plots/doubts"
Section = Callable[[Sequence[Result], Sequence[Row], Path], str]


def sections(results: Sequence[Result], rows: Sequence[Row], root: Path) -> str:
    """All of them; one without runs says which command makes them."""
    parts = (f"### {title}\n\n{write(results, rows, root / _HERE)}" for title, write in _SECTIONS.items())
    return "\n".join(parts)


def _of(results: Sequence[Result], setup: str) -> list[Result]:
    return [result for result in results if result.cell.setup == setup]


def _missing(what: str, command: str) -> str:
    return f"No runs of {what} are here; `python -m cp_train.benchmark {command} -o DIR` makes them.\n"


def _trials(results: Sequence[Result], _rows: Sequence[Row], folder: Path) -> str:
    """How much one trial's scores scatter, and what averaging several brings."""
    found = [result for result in results if any(name.startswith("dc/") for name in result.last.features)]
    if not found:
        return _missing("any method", "--setup six")
    spread: dict[int, dict[Run, float]] = {}
    right: dict[int, dict[Run, float]] = {}
    orders = {key: place for place, key in enumerate(dict.fromkeys((r.cell.setup, r.cell.order) for r in found))}
    for index, result in enumerate(found):
        order = orders[result.cell.setup, result.cell.order]
        for count, margin, share in _averaged(result):
            spread.setdefault(count, {})[order, index] = margin
            right.setdefault(count, {})[order, index] = share
    plots.lines(
        {"share of pictures told right": {count: units(shares) for count, shares in right.items()}},
        folder / "trials.png",
        x="trials averaged",
        y="accuracy",
        title="Trials",
    )
    table = markdown(
        ["trials", "standard deviation of the log-odds, nats", "accuracy"],
        [[str(n), shown(over_runs(spread[n])), shown(over_runs(right[n]))] for n in sorted(spread)],
    )
    return (
        "The log-odds of a picture's own concept against the best other, from one trial (t, noise) and from the mean "
        f"of several, over all runs ({len(found)}) at their end. The deviation is that of repeated answers about the "
        f"same picture.\n\n{table}\n![accuracy over trials]({_HERE}/trials.png)\n"
    )


def _averaged(result: Result) -> list[tuple[int, float, float]]:
    """(trials averaged, deviation of the log-odds between disjoint groups of so many, accuracy) of a run's end."""
    logits = [result.last.features[f"dc/{n}"] for n in range(1, result.count + 1)]
    trials = logits[0].shape[1]
    counts = [2**power for power in range(trials.bit_length()) if 2**power <= trials]
    found = []
    for count in counts:
        variances, shares = [], []
        for concept, logits_NTP in enumerate(logits, 1):
            means_NGP = logits_NTP[:, : trials // count * count].unflatten(1, (-1, count)).mean(2)
            odds_NG = _log_odds(means_NGP, concept)
            variances += odds_NG.var(1).tolist() if odds_NG.shape[1] > 1 else []
            shares.append(correct(means_NGP.flatten(0, 1), concept))
        found.append((count, float(np.mean(variances)) ** 0.5 if variances else float("nan"), float(np.mean(shares))))
    return found


def _log_odds(logits_NGP: torch.Tensor, concept: int) -> torch.Tensor:
    others = logits_NGP.clone()
    others[..., concept - 1] = -torch.inf
    return logits_NGP[..., concept - 1] - others.amax(-1)


def _interaction(_results: Sequence[Result], rows: Sequence[Row], folder: Path) -> str:
    """Penalty x DSC: do the terms add up?"""
    six = [row for row in rows if row["setup"] == "six"]
    present = {row["method"] for row in six}
    if not {"finetune", "ewc_dc", "dsc"} <= present:
        return _missing(
            "the penalties with and without DSC", "--setup six --methods finetune ewc ewc_dc dsc dsc_ewc_dc"
        )
    there = [name for _, *both in FACTORS for name in both if name in present]
    _interaction_plot(on_common_runs(six, there), folder / "interaction.png")
    return (
        "Each penalty alone and with DSC after it, on the runs that all of these have; parallel lines would be terms "
        "that add up, crossing ones terms that work against each other.\n\n"
        f"![penalty and DSC]({_HERE}/interaction.png)\n\n"
        f"What DSC adds to each, paired (bold: the 95% interval leaves out zero):\n\n{_added(six)}"
    )


def _added(rows: Sequence[Row]) -> str:
    lines = []
    for penalty, alone, both in FACTORS:
        gaps = [paired(column(rows, both, name), column(rows, alone, name)) for name in _INTERACTING]
        lines.append([penalty, *(signed(gap) for gap in gaps)])
    return markdown(["penalty", *_INTERACTING], lines)


def _interaction_plot(rows: Sequence[Row], path: Path) -> None:
    figure = Canvas(figsize=(9, 3.4))
    for axes, name in zip(figure.subplots(1, 3), _INTERACTING, strict=True):
        for place, title in ((1, "without DSC"), (2, "with DSC")):
            means = [_mean(rows, factor[place], name) for factor in FACTORS]
            axes.errorbar(
                range(len(FACTORS)),
                [m.mean if m else np.nan for m in means],
                yerr=[(m.half or 0) if m else 0 for m in means],
                marker="o",
                label=title,
                capsize=3,
            )
        axes.set_xticks(range(len(FACTORS)), [factor[0] for factor in FACTORS])
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    plots.save(figure, path)


def _mean(rows: Sequence[Row], label: str, name: str) -> Any:
    return over_runs(column(rows, label, name))


def _worth(_results: Sequence[Result], rows: Sequence[Row], folder: Path) -> str:
    """What DSC adds over EWC DC, and at what price."""
    six = [row for row in rows if row["setup"] == "six"]
    mine = [row for row in six if row["method"] in {"ewc_dc", "dsc_ewc_dc"}]
    if len({row["method"] for row in mine}) < len(("ewc_dc", "dsc_ewc_dc")):
        return _missing("`dsc_ewc_dc` and `ewc_dc`", "--setup six --methods ewc_dc dsc_ewc_dc")
    plots.scatter(six, folder / "price.png", x="cpu_seconds_per_task", y="F_MMD", title="Forgetting against its price")
    return (
        "Paired differences from `ewc_dc` (bold: the 95% interval leaves out zero).\n\n"
        f"{differences(mine, COMPARED, 'ewc_dc')}\n![forgetting against seconds]({_HERE}/price.png)\n"
    )


def _clock(results: Sequence[Result], _rows: Sequence[Row], folder: Path) -> str:
    """Time per task as tasks follow each other: C-LoRA's sum over the past against the others."""
    setups = {r.cell.setup for r in results if r.cell.label.startswith("clora")}
    if not setups:
        return _missing("C-LoRA", "--setup ten --methods finetune clora clora_shared ewc_dc")
    setup = max(setups, key=lambda name: max(r.count for r in _of(results, name)))
    found = plots.gathered(_of(results, setup), plots.seconds)
    plots.lines(found, folder / "clock.png", x="task", y="CPU seconds", title=f"Time of a task, setup {setup}")
    lines = [
        [f"`{label}`", *(number(float(np.mean(points[at])), 3) for at in (min(points), max(points)))]
        for label, points in found.items()
    ]
    return (
        f"CPU seconds of training and consolidation, setup `{setup}`.\n\n"
        f"{markdown(['method', 'first task', 'last task'], lines)}\n![time over tasks]({_HERE}/clock.png)\n"
    )


def _earlier(_results: Sequence[Result], rows: Sequence[Row], folder: Path) -> str:
    """How many earlier concepts a score compares."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if _K.fullmatch(row["method"]):
            found.setdefault(row["setup"], []).append(row)
    if not found:
        return _missing("several k", "--setup ten --methods study:k")
    setup = max(found, key=lambda name: found[name][0]["concepts"])
    tried = sorted(found[setup], key=_k)
    series = {
        "F_MMD": _by_k(tried, "F_MMD"),
        "F_MMD unseen": _by_k(tried, "F_MMD_unseen"),
        "A_MMD": _by_k(tried, "A_MMD"),
    }
    plots.lines(series, folder / "k.png", x="k, earlier concepts in a score", y="MMD", title=f"Setup {setup}, ewc_dc")
    figures = ("A_MMD", "F_MMD", "F_MMD_unseen", "cpu_seconds_per_task")
    table = markdown(
        ["k", *figures],
        [[str(k), *(shown(interval(_by_k(tried, f).get(k, []))) for f in figures)] for k in _by_k(tried, "A_MMD")],
    )
    return (
        f"`ewc_dc` on setup `{setup}` with other k (0: the new concept against its class noun only).\n\n"
        f"{table}\n![k]({_HERE}/k.png)\n"
    )


def _k(row: Row) -> int:
    match = _K.fullmatch(row["method"])
    assert match is not None
    return int(match[1])


def _by_k(rows: Sequence[Row], name: str) -> dict[int, list[float]]:
    found = {}
    for k in sorted({_k(row) for row in rows}):
        mine = [row for row in rows if _k(row) == k]
        found[k] = units(column(mine, mine[0]["method"], name))
    return {k: values for k, values in found.items() if values}


def _bases(results: Sequence[Result], _rows: Sequence[Row], folder: Path) -> str:
    """On what the comparison ran."""
    del folder
    found: dict[tuple[str, str], int] = {}
    for result in results:
        key = (result.told["base"], result.cell.setup)
        found[key] = found.get(key, 0) + 1
    table = markdown(["base", "setup", "runs"], [[f"`{b}`", s, str(count)] for (b, s), count in sorted(found.items())])
    return (
        f"What was run:\n\n{table}\nThe same command takes any Stable Diffusion 1.x, 2.x or XL pipeline with `--base` "
        "(prediction types epsilon and v); the tests learn on tiny pipelines of these layouts. What is not in the "
        "table was not compared.\n"
    )


_SECTIONS: Mapping[str, Section] = {
    "How much do scores of a single trial scatter?": _trials,
    "How do the terms of the loss interact?": _interaction,
    "What does DSC add over EWC DC, for its price?": _worth,
    "Wall-clock against C-LoRA": _clock,
    "k as the number of concepts grows": _earlier,
    "Models newer than SD 1.4": _bases,
}
