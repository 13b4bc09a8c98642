"""A canary: a version that gets a share of a lineage's requests before it is live, and when it loses that share.

In the registry it is the alias `canary` and a tag of the registered model with the percentage, so that MLflow's own
pages show it and may end it. Of a hundred requests in a row it gets `percent`, give or take two: one of every few,
drawn by lot, for a client's good and bad requests may come in turn, and must not all fall to one version.

It is ended when it fails more often than `live` does among the same traffic: Fisher's exact test on the two counts of
failures (one-sided, p < 0.01 [ours]). What is wrong with the requests themselves falls on both alike and ends nothing.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, comb, floor
from typing import Self

CANARY = "canary"
PERCENT_TAG = "palimpsest.canary_percent"

_SIGNIFICANT = 0.01
_REMEMBERED = 200
"""Answers of an arm after which its counts are halved: what happens now matters more than what happened yesterday."""


@dataclass(frozen=True)
class Canary:
    """Version `number` gets `percent` of the lineage's requests, more than 0 and less than 100."""

    number: int
    percent: float


@dataclass(frozen=True)
class Targets:
    """What the aliases of a lineage say: the versions that requests may be sent to.

    Attributes:
        created: when the lineage was made (milliseconds); another number is another lineage of the same name.
        deleted: versions that were deleted for good: nobody may keep a copy.
    """

    live: int | None
    candidate: int | None
    canary: Canary | None
    created: int = 0
    deleted: frozenset[int] = frozenset()


def canary_of(aliases: Mapping[str, int], tags: Mapping[str, str]) -> Canary | None:
    """The canary that a registered model's aliases and tags tell of, if there is one and its share is a share."""
    try:
        percent = float(tags[PERCENT_TAG])
        return Canary(aliases[CANARY], percent) if 0 < percent < 100 else None  # noqa: PLR2004
    except (KeyError, ValueError):
        return None


@dataclass
class Outcomes:
    """Answers and failures of one arm."""

    answers: int = 0
    failures: int = 0

    def add(self, *, failed: bool) -> None:
        """Count one answer."""
        if self.answers >= _REMEMBERED:
            self.answers, self.failures = self.answers // 2, self.failures // 2
        self.answers += 1
        self.failures += failed


def worse(canary: Outcomes, live: Outcomes) -> float:
    """Fisher's p: how likely the canary would have so many of all failures if both arms failed alike."""
    failures, everybody = canary.failures + live.failures, canary.answers + live.answers
    most = min(failures, canary.answers)
    ways = sum(comb(canary.answers, k) * comb(live.answers, failures - k) for k in range(canary.failures, most + 1))
    return ways / comb(everybody, failures)


@dataclass
class Trial:
    """One replica's view of one canary: whose turn it is, and how both arms have done. Not for many threads at once."""

    canary: Canary
    requests: int = 0
    arms: tuple[Outcomes, Outcomes] = field(default_factory=lambda: (Outcomes(), Outcomes()))
    chance: random.Random = field(default_factory=random.Random)
    _few: int = -1  # the number of the few among which the request is
    _drawn: int = 0  # the request of them that was drawn

    @classmethod
    def continued(cls, before: Self | None, canary: Canary) -> "Trial":
        """The same trial if version and share are; with another share its counts go on and turns are drawn anew."""
        if before is None or before.canary.number != canary.number:
            return cls(canary)
        return before if before.canary == canary else cls(canary, before.requests, before.arms)

    def next(self) -> bool:
        """Whether the canary gets the next request."""
        share = self.canary.percent / 100
        rarer = min(share, 1 - share)
        request, few = self.requests, floor(self.requests * rarer)
        if few != self._few:
            last = max(request, ceil((few + 1) / rarer) - 1)
            self._few, self._drawn = few, self.chance.randint(request, last)
        self.requests += 1
        return (request == self._drawn) == (share == rarer)

    def record(self, *, canary: bool, failed: bool) -> None:
        """How a request of one arm ended."""
        self.arms[canary].add(failed=failed)

    @property
    def failed(self) -> bool:
        """Whether the canary is to be ended."""
        live, canary = self.arms
        return worse(canary, live) < _SIGNIFICANT
