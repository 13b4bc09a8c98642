"""Markdown tables of means with intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cp_train.benchmark.results import Row, column, run_of
from cp_train.evaluation.statistics import Interval, Run, over_runs, paired


@dataclass(frozen=True)
class Figure:
    """A column of `results.csv` and how a person reads it; `better` is the way a good figure points."""

    name: str
    title: str
    better: str = ""
    digits: int = 3

    @property
    def heading(self) -> str:
        """Title with an arrow where one way is better."""
        return f"{self.title} {self.better}".strip()


MAIN = (
    Figure("A_MMD", "A_MMD", "↓"),
    Figure("F_MMD", "F_MMD", "↓"),
    Figure("A_MMD_unseen", "A_MMD unseen", "↓"),
    Figure("F_MMD_unseen", "F_MMD unseen", "↓"),
    Figure("A_MMD_last", "A_MMD last task", "↓"),
    Figure("clip_i", "image similarity", "↑"),
    Figure("clip_t", "prompt agreement", "↑"),
    Figure("dc_accuracy", "DC accuracy", "↑"),
    Figure("loss_rise", "loss rise", "↓"),
    Figure("base_drift", "base drift", "↓"),
    Figure("base_similarity", "base similarity", "↑"),
)
COSTS = (
    Figure("seconds_per_task", "seconds a task", "↓"),
    Figure("cpu_seconds_per_task", "CPU seconds a task", "↓"),
    Figure("peak_memory_mb", "peak memory, MB", "↓", 4),
    Figure("trained_percent", "trained, % of U-Net"),
    Figure("stored_percent", "stored to draw, % of U-Net"),
    Figure("kept_percent", "kept to learn on, % of U-Net"),
)
PAIRS = (
    Figure("pair_MMD", "MMD to composed pictures", "↓"),
    Figure("pair_both", "both recognised", "↑"),
    Figure("pair_both_real", "the same, composed pictures"),
)
_PLAIN = (1e-4, 1e4)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, without an exponent where people would not write one."""
    if value == 0 or not _PLAIN[0] <= abs(value) < _PLAIN[1]:
        return f"{value:.{digits - 1}e}" if value else "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def shown(found: Interval | None, digits: int = 3) -> str:
    """`mean ± half`, the mean alone of a single run, a dash where there is nothing."""
    if found is None:
        return "–"
    if found.half is None:
        return number(found.mean, digits)
    return f"{number(found.mean, digits)} ± {number(found.half, 2)}"


def means(rows: Sequence[Row], figures: Sequence[Figure]) -> str:
    """A line for each contender: its runs, and mean and interval of every figure that any of them has."""
    used = [figure for figure in figures if any(row.get(figure.name) is not None for row in rows)]
    lines = []
    for label in labels(rows):
        mine = [row for row in rows if row["method"] == label]
        found = [shown(over_runs(column(mine, label, f.name)), f.digits) for f in used]
        lines.append([f"`{label}`", str(len(mine)), *found])
    return markdown(["method", "runs", *(figure.heading for figure in used)], lines)


def compared(rows: Sequence[Row], figures: Sequence[Figure]) -> str:
    """`means` of the methods with the most runs and, where others have fewer, of all on the runs that all of them have.

    Means of different runs say as much about their concepts as about the methods.
    """
    runs = {label: {run_of(row) for row in rows if row["method"] == label} for label in labels(rows)}
    most, common = max(runs.values(), key=len, default=set()), common_runs(rows, list(runs))
    whole = means([row for row in rows if runs[row["method"]] == most], figures)
    if common == most:
        return whole
    if not common:
        return means(rows, figures)
    told = ", ".join(f"{order}/{seed}" for order, seed in sorted(common))
    return f"{whole}\nAll methods, on what all of them ran (order/seed {told}):\n\n" + means(
        on_common_runs(rows, list(runs)), figures
    )


def common_runs(rows: Sequence[Row], among: Sequence[str]) -> set[Run]:
    """Orders and seeds that every one of these contenders ran."""
    runs = [{run_of(row) for row in rows if row["method"] == label} for label in among]
    return set.intersection(*runs) if runs else set()


def on_common_runs(rows: Sequence[Row], among: Sequence[str]) -> list[Row]:
    """The rows of those orders and seeds alone."""
    common = common_runs(rows, among)
    return [row for row in rows if run_of(row) in common]


def differences(rows: Sequence[Row], figures: Sequence[Figure], reference: str) -> str:
    """The same of the paired differences from the reference; bold where the interval leaves out zero."""
    used = [figure for figure in figures if any(row.get(figure.name) is not None for row in rows)]
    lines = []
    for label in labels(rows):
        if label == reference:
            continue
        found = [paired(column(rows, label, figure.name), column(rows, reference, figure.name)) for figure in used]
        runs = max((f.runs for f in found if f), default=0)
        lines.append([f"`{label}`", str(runs), *(signed(f) for f in found)])
    return markdown(["method", "pairs", *(figure.heading for figure in used)], lines)


def labels(rows: Sequence[Row]) -> list[str]:
    """The contenders, in the order met."""
    return list(dict.fromkeys(row["method"] for row in rows))


def signed(found: Interval | None) -> str:
    """A difference: with its sign, bold where the interval leaves out zero."""
    if found is None:
        return "–"
    text = ("+" if found.mean > 0 else "") + shown(found)
    return f"**{text}**" if found.differs else text
