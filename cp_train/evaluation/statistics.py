"""Means with 95% intervals, and paired differences.

    mean +- t_{0.975, n-1} s / sqrt(n)        s: standard deviation with n - 1

Student's interval over runs. A run is one order of concepts with one seed; methods are compared on the differences of
their runs of the same order and seed, in which what the concepts themselves bring cancels.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

LEVEL = 0.95
K = TypeVar("K", bound=Hashable)


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
    """Mean and 95% interval of some runs' values; those that are not numbers are left out, None if none remains."""
    from scipy.stats import t

    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    count, mean = len(known), math.fsum(known) / len(known)
    if count == 1:
        return Interval(mean, None, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (count - 1))
    return Interval(mean, float(t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count), count)


def paired(ours: Mapping[K, float], theirs: Mapping[K, float]) -> Interval | None:
    """Interval of ours - theirs over the runs (keys) that both have."""
    return interval([ours[run] - theirs[run] for run in ours if run in theirs])
