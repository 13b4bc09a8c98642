"""Means with 95% intervals, and paired differences.

    mean +- t_{0.975, n-1} s / sqrt(n)        s: standard deviation with n - 1

Student's interval over the orders: runs of one order share their concepts, so they are no independent word on other
concepts, and count once, by their mean over the seeds (where there is one order only, its seeds take their place).
Seeds are nested in orders, for which this is the exact interval (the variance between orders holds that of the seeds).
Methods are compared on the differences of their runs of the same order and seed, in which what the concepts themselves
bring cancels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
Run = tuple[int, int]
"""Order and seed."""


@dataclass(frozen=True)
class Interval:
    """A mean and how far its interval reaches on each side; `half` is None where there is one run only."""

    mean: float
    half: float | None
    runs: int

    @property
    def low(self) -> float:
        """Lower end; the mean itself where there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Upper end; the mean itself where there is no interval."""
        return self.mean + (self.half or 0.0)

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.half is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95% interval of independent values; those that are not numbers are left out, None if none remains."""
    from scipy.stats import t

    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    count, mean = len(known), math.fsum(known) / len(known)
    if count == 1:
        return Interval(mean, None, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (count - 1))
    return Interval(mean, float(t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count), count)


def units(values: Mapping[Run, float]) -> list[float]:
    """What an interval may treat as independent: the mean of each order's runs, or the runs of the only order."""
    found: dict[int, list[float]] = {}
    for (order, _), value in values.items():
        if math.isfinite(value):
            found.setdefault(order, []).append(value)
    if len(found) == 1:
        return next(iter(found.values()))
    return [math.fsum(runs) / len(runs) for runs in found.values()]


def over_runs(values: Mapping[Run, float]) -> Interval | None:
    """Mean and interval of a figure of some runs; `runs` counts them all."""
    found = interval(units(values))
    return found and replace(found, runs=sum(map(math.isfinite, values.values())))


def paired(ours: Mapping[Run, float], theirs: Mapping[Run, float]) -> Interval | None:
    """The same of ours - theirs, of the runs that both have."""
    return over_runs({run: ours[run] - theirs[run] for run in ours if run in theirs})
