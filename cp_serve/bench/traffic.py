"""Who asks for what, and when: the same for every system.

Two kinds. At saturation each of the people asks again a moment (exponential) after getting a picture, so that never
more requests wait than there are people. At half load arrivals are Poisson, whatever the system does.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

PROMPTS = ("a photo of a {}", "a picture of a {}", "a {} on grass", "two {}", "a red {}", "a drawing of a {} at night")
"""`{}` is the concept."""


@dataclass(frozen=True)
class Wish:
    """One request for one picture."""

    person: int
    version: int
    prompt: str
    seed: int


class Traffic:
    """Requests in the order of their arrival.

    Args:
        people, versions: how many; everybody has one version.
        count: requests in all.
        seed: of everything drawn by lot.
        think: mean seconds between a person's picture and the next request, at saturation.
        rate: requests a second, if they come whatever the system does.
    """

    def __init__(
        self, *, people: int, versions: int, count: int, seed: int, think: float = 0.0, rate: float = 0.0
    ) -> None:
        self._pick, self._versions, self._left = random.Random(seed), versions, count  # noqa: S311
        self._think, self._rate, self._asked = think, rate, 0
        self._due: list[tuple[float, int]] = []
        self._open = 0
        if rate:
            self._poisson(people, count)
        else:
            for person in range(min(people, count)):
                self._ask(person, 0.0)

    def _poisson(self, people: int, count: int) -> None:
        now = 0.0
        for _ in range(count):
            now += self._pick.expovariate(self._rate)
            self._schedule(self._pick.randrange(people), now)

    @property
    def finished(self) -> bool:
        """Whether all were asked and answered."""
        return not self._due and not self._open

    @property
    def next_at(self) -> float | None:
        """Second at which the next request comes, as far as is known."""
        return self._due[0][0] if self._due else None

    def arrived(self, now: float) -> Iterator[tuple[float, Wish]]:
        """What has come until second `now` and was not taken yet, with its moment."""
        while self._due and self._due[0][0] <= now:
            moment, person = heapq.heappop(self._due)
            self._open += 1
            self._asked += 1
            prompt = PROMPTS[self._asked % len(PROMPTS)]
            yield moment, Wish(person, person % self._versions, prompt, self._asked)

    def answered(self, wish: Wish, now: float) -> None:
        """A person got a picture."""
        self._open -= 1
        if not self._rate:
            self._ask(wish.person, now)

    def _ask(self, person: int, now: float) -> None:
        if self._left:
            self._schedule(person, now + (self._pick.expovariate(1 / self._think) if self._think else 0.0))

    def _schedule(self, person: int, moment: float) -> None:
        self._left -= 1
        heapq.heappush(self._due, (moment, person))
