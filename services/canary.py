"""A canary: a version that gets a share of a lineage's requests before it is live, and when it loses that share.

In the registry it is the alias `canary` and a tag of the registered model with the percentage, so that MLflow's own
pages show it and may end it. Of a hundred requests in a row it gets `percent`, give or take two: one of every few,
drawn by lot, for a client's good and bad requests may come in turn, and must not all fall to one version.

It is ended when it fails more often than `live` does among the same traffic. That is looked at after every answer, so
the test is one that may be: the sequential form of universal inference (Wasserman, Ramdas and Balakrishnan, PNAS 117,
2020), with a mixture of alternatives. With k failures among the canary's n answers, j among live's m, and
L(p, k, n) = p^k (1 - p)^(n - k),

    E = (J(k, n) + [k = n]) / 2  *  (J(j, m) + [j = 0]) / 2  /  max_p L(p, k + j, n + m)

    J(k, n) = integral of L(p, k, n) over Jeffreys' prior = B(k + 1/2, n - k + 1/2) / B(1/2, 1/2)

Half of the bet is on any rates, half [ours] on a canary that always fails and on a live version that never does. If
both fail at the same rate, each answer by itself, E ever reaches 1/a with probability at most a (Ville's inequality),
however often it is looked at, whatever the rate, and however answers fall to the two.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, exp, floor, inf, lgamma, log, log1p, pi
from typing import Self

CANARY = "canary"
PERCENT_TAG = "palimpsest.canary_percent"

_FALSE_ALARM = 0.01
"""Probability, at most, that a replica ever ends a canary that fails no more often than the live version."""


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
        unrecorded: an alias was moved in MLflow itself, and the audit log has not got that yet.
    """

    live: int | None
    candidate: int | None
    canary: Canary | None
    created: int = 0
    deleted: frozenset[int] = frozenset()
    unrecorded: bool = False


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
        self.answers += 1
        self.failures += failed

    def log_likelihood(self) -> float:
        """log max_p L(p): of these failures, at the rate at which they are likeliest."""
        counts = self.failures, self.answers - self.failures
        return sum(count * log(count / self.answers) for count in counts if count)

    def log_mixture(self, rate: int) -> float:
        """log of (J + L(rate)) / 2: of these failures, at any rate or at this one, which is 0 or 1."""
        good = self.answers - self.failures
        any_rate = lgamma(self.failures + 0.5) + lgamma(good + 0.5) - lgamma(self.answers + 1) - log(pi)
        return (log1p(exp(any_rate)) if self.failures == rate * self.answers else any_rate) - log(2)


def log_evidence(canary: Outcomes, live: Outcomes) -> float:
    """log E: how much more likely what happened is if the canary fails more often than if both fail alike; -inf where
    it has not failed more often.
    """
    if canary.failures * live.answers <= live.failures * canary.answers:
        return -inf
    both = Outcomes(canary.answers + live.answers, canary.failures + live.failures)
    return canary.log_mixture(rate=1) + live.log_mixture(rate=0) - both.log_likelihood()


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
        return log_evidence(canary, live) >= -log(_FALSE_ALARM)
