"""Waiting out an outage, for work that may be done again."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from services.errors import UnavailableError

_FIRST, _LONGEST = 1.0, 15.0  # seconds between two tries
_T = TypeVar("_T")


def outlast(work: Callable[[], _T], *, seconds: float, say: Callable[[str], object]) -> _T:
    """Do some work, again and again while something outside does not answer.

    Args:
        work: may be repeated after any part of it was done.
        seconds: to wait at most, from the first failure on.
        say: called with a line when waiting begins.

    Raises:
        UnavailableError: it still does not answer.
    """
    until, pause = 0.0, _FIRST
    while True:
        try:
            return work()
        except UnavailableError as error:
            now = time.monotonic()
            if not until:
                until = now + seconds
                say(f"waiting for at most {seconds:g} s: {error.message}")
            if now >= until:
                raise
        time.sleep(min(pause * random.uniform(0.5, 1.0), until - now))  # noqa: S311
        pause = min(2 * pause, _LONGEST)
