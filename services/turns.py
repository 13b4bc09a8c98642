"""Turns: who waits for a lease gets it in the order in which they queued up.

A place is an object `leases/<name>/queue/<number>`, created only if absent, and rewritten by who stands there with
another `beat` every now and then. Whoever is silent for `ttl` seconds, by the others' own monotonic clocks, loses the
place; if that was a mistake, the next beat brings it back. A place that was taken for somebody who has yet to begin
says for how many seconds (`patience`) it is kept without a beat. A place decides only about order: that there is one
writer at a time is the lease's business (`lease.py`).
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress

from services.errors import NotFoundError
from services.objects import ObjectStore

_DIGITS = 12
_LONGEST = 600.0  # seconds that a place may be kept for somebody who has yet to begin


class Silence:
    """How long objects have not changed, for as long as somebody looked.

    Args:
        pause: seconds between two looks; of a longer absence (the looker was stopped, or cut off) only three count.

    Attributes:
        alive: keys of the objects that changed while somebody looked, as far as they are still there.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._seen: Mapping[str, tuple[bytes, float]] = {}
        self._looked = time.monotonic()
        self.alive: frozenset[str] = frozenset()

    def look(self, objects: Mapping[str, bytes]) -> dict[str, float]:
        """Key -> seconds for which it has been what it is."""
        now = time.monotonic()
        heard = min(now - self._looked, 3 * self._pause)
        silent, changed = {}, set(self.alive)
        for key, data in objects.items():
            before, seconds = self._seen.get(key, (None, 0.0))
            silent[key] = seconds + heard if before == data else 0.0
            if before not in {None, data}:
                changed.add(key)
        self.alive = frozenset(changed & objects.keys())
        self._seen, self._looked = {key: (data, silent[key]) for key, data in objects.items()}, now
        return silent


class Turn:
    """A place in a queue.

    Args:
        folder: of the queue's objects, with a slash at the end.
        ttl: seconds of silence after which others lose their places.
        pause: seconds between two looks.
        who: what the others read, and what tells our places from theirs.
        place: one that was taken before (`queue_up`); None takes the last one.

    Attributes:
        ahead: how many stand before us, as far as they may still live.

    Raises:
        UnavailableError: the store does not answer; every method may raise it.
    """

    def __init__(
        self, store: ObjectStore, folder: str, *, ttl: float, pause: float, who: str, place: int | None = None
    ) -> None:
        self._store, self._folder, self._ttl, self._who = store, folder, ttl, who
        self._place, self._silence = place, Silence(pause)
        self._beat, self._beaten = 0, -float("inf")
        self.ahead = 0

    @property
    def somebody_lives(self) -> bool:
        """Whether one of those before us showed that they live, while we looked."""
        return bool(self._silence.alive)

    def has_come(self) -> bool:
        """Whether nobody who still lives stands before us. Call it again and again: it keeps the place, too."""
        if self._place is None:
            self._place = queue_up(self._store, self._folder, self._who)
        self._keep()
        alive, before = 0, self._before(self._place)
        for key, seconds in self._silence.look(before).items():
            if seconds >= max(self._ttl, _patience(before[key])):
                self._store.delete(key)
            else:
                alive += 1
        self.ahead = alive
        return alive == 0

    def leave(self) -> None:
        """Give the place up."""
        if self._place is not None:
            self._store.delete(_key(self._folder, self._place))

    def _keep(self) -> None:
        now = time.monotonic()
        if self._place is not None and now - self._beaten >= self._ttl / 4:
            self._beat, self._beaten = self._beat + 1, now
            self._store.put(_key(self._folder, self._place), _state(self._who, self._beat))

    def _before(self, place: int) -> dict[str, bytes]:
        """What those before a place wrote last."""
        found = {}
        for key in self._store.list(self._folder):
            with suppress(NotFoundError):  # left meanwhile
                if _number(key) < place:
                    found[key] = self._store.get(key)
        return found


def queue_up(store: ObjectStore, folder: str, who: str, *, patience: float = 0.0) -> int:
    """Take the last place in a queue and return its number.

    Whoever took it must come for it within the others' `ttl`, or within `patience` seconds, if that is longer.
    """
    while True:
        place = max((_number(key) for key in store.list(folder)), default=0) + 1
        if store.create(_key(folder, place), _state(who, 0, patience)):
            return place


def _state(who: str, beat: int, patience: float = 0.0) -> bytes:
    return json.dumps({"who": who, "beat": beat, "patience": patience}).encode()


def _patience(data: bytes) -> float:
    """How long a silent place is kept, as far as it says so and within reason."""
    try:
        found = float(json.loads(data)["patience"])
    except (ValueError, TypeError, LookupError):
        return 0.0
    return min(found, _LONGEST)


def _key(folder: str, number: int) -> str:
    return f"{folder}{number:0{_DIGITS}d}"


def _number(key: str) -> int:
    tail = key.rpartition("/")[2]
    return int(tail) if tail.isdecimal() else 0
