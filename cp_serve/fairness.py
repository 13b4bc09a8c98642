"""Who draws next, and when a request would be done: pure functions of what is running and waiting.

The batch's places are shared max-min: everybody's first drawing comes before anybody's second, everybody's second
before anybody's third, and equals go in the order in which they came. What is drawn on is chosen anew at every step, so
that eight long drawings of one person give way, half done, as soon as others come, and go on when there is room.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar


class Claim(Protocol):
    """A drawing as far as sharing goes: whose it is, U-Net rows and denoising steps left."""

    @property
    def person(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def remaining(self) -> int: ...  # noqa: D102


_C = TypeVar("_C", bound=Claim)


def choose(claims: Sequence[_C], capacity: int) -> list[_C]:
    """The claims that draw at the next step, at most `capacity` of them, out of all in the order in which they came."""
    if len(claims) <= capacity:
        return list(claims)
    turns: Counter[str] = Counter()
    ranked = []
    for order, claim in enumerate(claims):
        ranked.append((turns[claim.person], order))
        turns[claim.person] += 1
    return [claims[order] for _, order in sorted(ranked)[:capacity]]


@dataclass
class Pace:
    """Seconds of a step as a line over the batch's rows, fitted to what was measured; the latest counts most.

    Attributes:
        memory: weight of what is one measurement older.
    """

    memory: float = 0.97
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # weights, rows, seconds, rows^2, rows * seconds

    def measure(self, rows: int, seconds: float) -> None:
        """Take in one step."""
        new = (1.0, rows, seconds, rows * rows, rows * seconds)
        self._sums = [old * self.memory + value for old, value in zip(self._sums, new, strict=True)]

    def seconds(self, rows: int) -> float:
        """Expected seconds of a step of so many rows; 0 before anything was measured."""
        weight, x, y, xx, xy = self._sums
        if not weight:
            return 0.0
        spread = xx - x * x / weight
        if spread < 1e-6 * xx:
            return y / x * rows  # one size seen: proportional
        slope = min(max((xy - x * y / weight) / spread, 0.0), y / x)
        return (y - slope * x) / weight + slope * rows


@dataclass
class _Simulated:
    person: str
    rows: int
    remaining: int
    order: int


def finish_times(claims: Sequence[Claim], capacity: int, pace: Pace) -> list[float]:
    """Seconds until each claim is done if nobody else comes, in the order of `claims`."""
    left = [_Simulated(claim.person, claim.rows, claim.remaining, order) for order, claim in enumerate(claims)]
    finished, now = [0.0] * len(left), 0.0
    while left:
        running = choose(left, capacity)
        steps = max(min(claim.remaining for claim in running), 1)
        now += steps * pace.seconds(sum(claim.rows for claim in running))
        for claim in running:
            claim.remaining -= steps
            finished[claim.order] = now
        left = [claim for claim in left if claim.remaining > 0]
    return finished
