"""What was expected of the methods, held against the runs: each expectation with its figures and a verdict.

A verdict is `shown` where 95% intervals say so, `refuted` where they say the contrary, else `open`; `no runs` where the
runs are not there. Limits stand in the sentences themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum

from cp_train.benchmark.results import Result, Row, column
from cp_train.benchmark.tables import markdown, on_common_runs, shown
from cp_train.evaluation.statistics import Interval, interval, over_runs, paired

PAPERS = ("ewc_dc", "dsc", "dsc_ewc", "dsc_ewc_dc")
OURS = ("kv", "ewc_dc_kv", "dsc_kv", "dsc_ewc_dc_kv")
SETUP, LONG = "six", "fifty"
FAST, FLAT, GROWTH = 1.15, 1.15, 0.01
"""Time of a task: of plain fine-tuning's, and late in a sequence of what it is once k is at its most."""
_FULL_K, _FEW = 7, 5
"""The first task in which as many earlier concepts as possible are scored; tasks that a time is a mean of."""
NO_RUNS, OPEN, SHOWN, REFUTED = "no runs", "open", "shown", "refuted"


@dataclass(frozen=True)
class Claim:
    """An expectation, what was found, and what follows."""

    says: str
    found: str
    verdict: str


def section(results: Sequence[Result], rows: Sequence[Row]) -> str:
    """The table of all claims."""
    lines = [[claim.says, claim.found, claim.verdict] for claim in claims(results, rows)]
    return markdown(["expected", "found (mean ± half of the 95% interval)", "verdict"], lines)


def claims(results: Sequence[Result], rows: Sequence[Row]) -> Iterator[Claim]:
    """All of them."""
    six = [row for row in rows if row["setup"] == SETUP]
    for method in ("ewc_dc", "dsc_ewc_dc"):
        for rival in ("clora", "finetune"):
            for figure in ("A_MMD", "F_MMD"):
                yield better(six, method, rival, figure)
    for method in OURS:
        for figure in ("F_MMD", "F_MMD_unseen"):
            yield halves(six, method, figure)
    for method in OURS:
        yield quick(six, method)
        yield learns(six, method)
    long = [result for result in results if result.cell.setup == LONG]
    for method in ("ewc_dc", "ewc_dc_kv"):
        yield flat([result for result in long if result.cell.label == method], method)
        yield constant([result for result in long if result.cell.label == method], method)


def better(rows: Sequence[Row], method: str, rival: str, figure: str) -> Claim:
    """Less of a figure than a rival has, run by run."""
    gap = paired(column(rows, method, figure), column(rows, rival, figure))
    return Claim(f"{figure} of `{method}` is below that of `{rival}`", _difference(gap), _below_zero(gap))


def halves(rows: Sequence[Row], method: str, figure: str) -> Claim:
    """At most half of what the best of the paper's methods has."""
    there = [name for name in PAPERS if column(rows, name, figure)]
    compared = on_common_runs(rows, there)
    known = {name: mean for name in there if (mean := over_runs(column(compared, name, figure)))}
    best = min(known, key=lambda name: known[name].mean, default=None)
    half = {run: value / 2 for run, value in column(rows, best, figure).items()} if best else {}
    gap = paired(column(rows, method, figure), half)
    says = f"{figure} of `{method}` is at most half of the best of the paper's"
    found = f"against half of `{best}`: {_difference(gap)}" if gap else NO_RUNS
    return Claim(says, found, _below_zero(gap))


def quick(rows: Sequence[Row], method: str) -> Claim:
    """CPU time of a task as a share of fine-tuning's."""
    plain = column(rows, "finetune", "cpu_seconds_per_task")
    mine = column(rows, method, "cpu_seconds_per_task")
    share = over_runs({run: mine[run] / plain[run] for run in mine if run in plain})
    found = shown(share) if share else NO_RUNS
    return Claim(f"a task of `{method}` takes at most {FAST} of `finetune`'s time", found, _below(share, FAST))


def learns(rows: Sequence[Row], method: str) -> Claim:
    """The newest concept is drawn no worse than by fine-tuning."""
    plain = over_runs(column(rows, "finetune", "A_MMD_last"))
    mine = over_runs(column(rows, method, "A_MMD_last"))
    says = f"A_MMD of the last concept of `{method}` is within the interval of `finetune`'s, or below"
    if plain is None or mine is None:
        return Claim(says, NO_RUNS, NO_RUNS)
    verdict = OPEN if plain.half is None else SHOWN if mine.mean <= plain.high else REFUTED
    return Claim(says, f"{shown(mine)} against {shown(plain)}", verdict)


def flat(runs: Sequence[Result], method: str) -> Claim:
    """Time of the last tasks as a share of the first ones that score as many earlier concepts.

    The interval is over the runs or, of a single one, over its pairs of an early and a late task.
    """
    known = {run.cell.paired: shares for run in runs if (shares := _late_shares(run))}
    means = {run: fsum(shares) / len(shares) for run, shares in known.items()}
    mean = interval(next(iter(known.values()))) if len(known) == 1 else over_runs(means)
    late = f"the last {_FEW} tasks of `{method}` take at most {FLAT} of the time of {_FEW} from task {_FULL_K} on"
    return Claim(f"`{LONG}`: {late}", shown(mean) if mean else NO_RUNS, _below(mean, FLAT))


def constant(runs: Sequence[Result], method: str) -> Claim:
    """What is stored grows by the new concepts' embeddings alone, which are small beside it."""
    says = f"`{LONG}`: the adapter of `{method}` grows by less than {GROWTH:.0%} a concept (its embedding)"
    if not runs:
        return Claim(says, NO_RUNS, NO_RUNS)
    share = max(_growth(run) for run in runs)
    return Claim(says, f"{100 * share:.2g}%", SHOWN if share < GROWTH else REFUTED)


def _growth(run: Result) -> float:
    """Parameters more to store for each concept, as a share of those after the first."""
    first, last = run.records[1].figures["stored"], run.last.figures["stored"]
    return float((last - first) / (run.count - 1) / first)


def _late_shares(run: Result) -> list[float]:
    if run.count < _FULL_K + 2 * _FEW - 1:
        return []
    seconds = {number: record.figures["cpu_seconds"] for number, record in run.records.items()}
    early, late = range(_FULL_K, _FULL_K + _FEW), range(run.count - _FEW + 1, run.count + 1)
    return [seconds[last] / seconds[first] for first, last in zip(early, late, strict=True)]


def _difference(gap: Interval | None) -> str:
    return NO_RUNS if gap is None else f"{'+' if gap.mean > 0 else ''}{shown(gap)} ({gap.runs} pairs)"


def _below_zero(gap: Interval | None) -> str:
    return _below(gap, 0.0)


def _below(found: Interval | None, limit: float) -> str:
    """Whether a figure is at most a limit, by its interval."""
    if found is None:
        return NO_RUNS
    if found.half is None or found.low <= limit < found.high:
        return OPEN
    return SHOWN if found.high <= limit else REFUTED
