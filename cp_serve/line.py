"""Long work beside the event loop, one after the other: so much may wait, and what nobody waits for stops."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cp_serve.choice import run_in
from services.errors import BusyError

_T = TypeVar("_T")
Check = Callable[[], None]
"""Raises `GivenUpError` once nobody waits any more; long work calls it now and then."""


class GivenUpError(Exception):
    """Nobody waits for this work any more."""


class Line:
    """Its methods belong to one event loop.

    Args:
        name: of its thread.
        most: that may be in it, whoever is being served included.
    """

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._most, self._length, self._seconds = most, 0, 1.0

    async def run(self, work: Callable[[Check], _T]) -> _T:
        """Do some work in its turn; cancelling this ends it at its next check.

        Raises:
            BusyError: the line is full; `retry_after` is what those in it take if they are like the last one.
        """
        if self._length >= self._most:
            why = f"{self._length} others are before you; try again later."
            raise BusyError(why, retry_after=self._length * self._seconds)
        self._length += 1
        left = threading.Event()
        try:
            return await run_in(self._pool, lambda: self._do(work, left))
        finally:
            left.set()
            self._length -= 1

    def close(self) -> None:
        """Finish what is in it."""
        self._pool.shutdown()

    def _do(self, work: Callable[[Check], _T], left: threading.Event) -> _T:
        def check() -> None:
            if left.is_set():
                raise GivenUpError

        check()
        begun = time.monotonic()
        done = work(check)
        self._seconds = time.monotonic() - begun
        return done
