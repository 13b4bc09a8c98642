"""Long work beside the event loop, one after the other: so much may wait, and what nobody waits for stops.

People take turns: whoever has been served goes to the end, with all that they still wait for. Nobody has more than half
of the places.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from services.errors import BusyError, QuotaError

_T = TypeVar("_T")
Check = Callable[[], None]
"""Raises `GivenUpError` once nobody waits any more; long work calls it now and then."""


class GivenUpError(Exception):
    """Nobody waits for this work any more."""


@dataclass(eq=False)
class _Place:
    """Some work in line, and what becomes of it."""

    work: Callable[[Check], Any]
    result: Future[Any] = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        if self.left.is_set():
            raise GivenUpError


class Line:
    """Its methods belong to one event loop.

    Args:
        name: of its thread.
        most: that may be in it, whoever is being served included.
    """

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._most, self._seconds = most, 1.0
        self._held: Counter[str] = Counter()  # places, by person
        self._lock = threading.Lock()
        self._turns: deque[str] = deque()  # who is next; whoever is being served has no turn until then
        self._waiting: dict[str, deque[_Place]] = {}  # what for, by person

    async def run(self, work: Callable[[Check], _T], *, person: str = "") -> _T:
        """Do some work in its turn; cancelling this ends it at its next check.

        Args:
            work: called in the line's thread.
            person: whose turn it takes. Whoever has no name may have every place.

        Raises:
            BusyError: the line is full; `retry_after` is what those in it take if they are like the last one.
            QuotaError: half of the line is this person's; `retry_after` as above, until all have had a turn.
        """
        self._check_room(person)
        place = _Place(work)
        self._held[person] += 1
        with self._lock:
            if person not in self._waiting:
                self._waiting[person] = deque()
                self._turns.append(person)
            self._waiting[person].append(place)
        self._pool.submit(self._serve_next)
        try:
            found: _T = await asyncio.wrap_future(place.result)
        finally:
            place.left.set()
            self._held -= Counter([person])  # nobody is kept who has none
        return found

    def close(self) -> None:
        """Finish what is in it."""
        self._pool.shutdown()

    def _check_room(self, person: str) -> None:
        length, own = self._held.total(), self._held[person]
        if length >= self._most:
            raise BusyError(f"{length} others are before you; try again later.", retry_after=length * self._seconds)
        if person and own >= -(-self._most // 2):
            why = f"{own} requests of yours are in line; try again when one is done."
            raise QuotaError(why, retry_after=len(self._held) * self._seconds)

    def _serve_next(self) -> None:
        with self._lock:
            person = self._turns.popleft()
            place = self._waiting[person].popleft()
        self._serve(place)
        with self._lock:
            if self._waiting[person]:
                self._turns.append(person)
            else:
                del self._waiting[person]

    def _serve(self, place: _Place) -> None:
        if not place.result.set_running_or_notify_cancel():
            return
        begun = time.monotonic()
        try:
            place.check()
            done = place.work(place.check)
        except BaseException as error:
            place.result.set_exception(error)
        else:
            self._seconds = time.monotonic() - begun
            place.result.set_result(done)
