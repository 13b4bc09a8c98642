"""How much one person may have in a while: token buckets (as in RFC 2697, one rate), full at first.

Counted in the memory of one process, the HTTP ingress, of which there is one; a restart fills every bucket.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.auth import Person
from services.errors import InputError, PalimpsestError, QuotaError

_MOST = 10_000  # people remembered; then everybody begins anew


@dataclass(frozen=True)
class Quota:
    """`most` of `what` in `seconds`, evenly: a bucket of that size that fills at that pace. 0 is no limit."""

    what: str
    most: int
    seconds: float


class Buckets:
    """Everybody's share of one quota. Safe to use from many threads.

    Args:
        quota: the share.
        clock: seconds that only grow.
    """

    def __init__(self, quota: Quota, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota, self._clock = quota, clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # what was left, and when

    @contextmanager
    def taken(self, person: Person, amount: int) -> Iterator[None]:
        """Take some for the body of a `with`, and give it back if that is refused or breaks down.

        Administrators, and anybody where there is no authentication, have no limit.

        Raises:
            QuotaError: there is not so much left; `retry_after` says when there is.
            InputError: there never will be.
        """
        if person.admin or not self._quota.most:
            yield
            return
        self._take(person.name, amount)
        try:
            yield
        except Exception:
            self._take(person.name, -amount)
            raise

    def _take(self, person: str, amount: int) -> None:
        quota = self._quota
        with self._lock:
            now = self._clock()
            left, since = self._left.get(person, (quota.most, now))
            left = min(quota.most, left + (now - since) * quota.most / quota.seconds)
            if amount > left:
                raise _used_up(quota, amount, (amount - left) * quota.seconds / quota.most)
            if len(self._left) >= _MOST:
                self._left.clear()
            self._left[person] = min(quota.most, left - amount), now


def _used_up(quota: Quota, amount: int, wait: float) -> PalimpsestError:
    share = f"Your share is {quota.most} {quota.what} in {quota.seconds / 3600:g} h"
    if amount > quota.most:
        return InputError(f"{share}: ask for fewer at once.")
    return QuotaError(f"{share}, and it is used up.", retry_after=math.ceil(wait))
