"""What is known of something that rests in a store, looked up anew every few seconds, also while the store is away.

A value is true for five seconds. Then one thread looks it up anew, and all who ask meanwhile wait for that. A store
that fails, or says nothing for two seconds, is away: what was known stands in for an hour, at once, and one call in the
background asks again every five seconds until it answers. So a store that hangs holds up nobody who was known before.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.errors import UnavailableError

_FRESH = 5.0  # seconds that a value counts as true
_STALE = 3600.0  # seconds for which it stands in while the store is away
_AGAIN = 5.0  # seconds between two calls of a store that is away
_PATIENCE, _LONGEST = 2.0, 10.0  # seconds that a call is waited for where something stands in, and where nothing does
_MOST = 10_000  # values remembered

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Known(Generic[_T]):
    since: float
    value: _T


class Recall(Generic[_T]):
    """Values by key. Safe to use from many threads.

    Args:
        find: looks a value up; raises UnavailableError where the store does not answer.
        clock: seconds that only grow.
    """

    def __init__(self, find: Callable[[str], _T], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._find, self._clock = find, clock
        self._lock = threading.Lock()
        self._known: dict[str, _Known[_T]] = {}
        self._looks: dict[str, Future[_T]] = {}
        self._again: float | None = None  # while the store is away: when it may be asked again

    def get(self, key: str) -> _T:
        """A value.

        Raises:
            UnavailableError: the store does not answer, and nothing is known.
        """
        with self._lock:
            now, known = self._clock(), self._known.get(key)
            if known and now - known.since < _FRESH:
                return known.value
            if known and now - known.since >= _STALE:
                known = None
            away = self._again is not None
            look = self._begin(key, now)
        if known and away:
            return known.value
        try:
            return self._await(look, _PATIENCE if known else _LONGEST)
        except UnavailableError:
            if known:
                return known.value
            raise

    def forget(self, key: str) -> None:
        """Look a value up anew next time."""
        with self._lock:
            self._known.pop(key, None)
            self._looks.pop(key, None)

    def _begin(self, key: str, now: float) -> Future[_T] | None:
        """The call that looks a value up, begun unless it is under way; None: the store is left alone for now."""
        if self._again is None and key in self._looks:
            return self._looks[key]
        if self._again is not None:
            if now < self._again:
                return None
            self._again = now + _AGAIN
        look = self._looks[key] = Future()
        threading.Thread(target=self._look, args=(key, now, look), name="recall", daemon=True).start()
        return look

    def _look(self, key: str, now: float, look: Future[_T]) -> None:
        try:
            value = self._find(key)
        except Exception as error:
            with self._lock:
                self._end(key, look, away=isinstance(error, UnavailableError))
                look.set_exception(error)
            return
        with self._lock:
            if self._end(key, look, away=False):
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[key] = _Known(now, value)
            look.set_result(value)

    def _end(self, key: str, look: Future[_T], *, away: bool) -> bool:
        """Whether a call that has ended is still the one that counts: a later one, or `forget`, takes its place."""
        current = self._looks.get(key) is look
        if current:
            del self._looks[key]
        if not away:
            self._again = None
        elif current:
            self._again = self._clock() + _AGAIN
        return current

    def _await(self, look: Future[_T] | None, patience: float) -> _T:
        if look is None:
            raise _silent()
        wait([look], patience)
        if look.done():
            return look.result()
        with self._lock:
            if self._again is None:
                self._again = self._clock() + _AGAIN
        raise _silent()


def _silent() -> UnavailableError:
    return UnavailableError("The store does not answer; try again.", retry_after=_AGAIN)
