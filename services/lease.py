"""One writer per lineage, on nothing but an object store's create-if-absent.

A lease is a sequence of objects `leases/<name>/<number>`. The highest number is the current one, and is the
holder's fencing token. Its holder rewrites it with another `beat` every now and then, and with `released` at
the end. A waiter takes over by creating the next number once the current one is released, or has not changed
for `ttl` seconds of the waiter's own monotonic clock: clocks are never compared, so none can lose the lock. Waiters
take turns in the order in which they came (`turns.py`).

Numbers never come back. Old ones are deleted, the highest never; whoever creates a number that was in use
long ago (a waiter that slept meanwhile) finds a higher one beside it and knows that it has nothing.

A paused holder may wake up after its lease was taken, hence `check()` before every act that cannot be undone.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from services.errors import BusyError, ConflictError, InputError, NotFoundError, UnavailableError
from services.objects import ObjectStore
from services.turns import Silence, Turn, queue_up

LEASES = "leases"
"""Folder of the store."""
_DIGITS = 12
_KEEP = 8  # numbers kept: a listing that runs beside takeovers must not miss all the newest
_BEATS = 4  # renewals in one ttl
_LOOKS = 10  # looks of a waiter in one ttl, but never less than one a second

_log = logging.getLogger("palimpsest.lease")


class Lease:
    """A lease that is held, and renewed by a thread of its own until `release`.

    Attributes:
        token: the fencing token; every later holder's is higher.
    """

    def __init__(self, store: ObjectStore, prefix: str, token: int, *, holder: str, nonce: str) -> None:
        self.token = token
        self._store, self._prefix, self._holder, self._nonce = store, prefix, holder, nonce
        self._beat = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Make sure, in the store, that the lease is still ours. Call it before each irreversible act.

        Raises:
            ConflictError: somebody took it over.
            UnavailableError: the store cannot be asked.
        """
        if max(_numbers(self._store, self._prefix), default=0) != self.token:
            raise ConflictError(
                f"The lease of {self._holder} was taken over after a long silence: nothing may be written; "
                "start again from the current state."
            )

    def start(self, ttl: float) -> None:
        """Begin to renew."""
        self._thread = threading.Thread(target=self._renew, args=(ttl / _BEATS,), name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing and let the next one in; if the store is down, they wait for `ttl` instead."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        try:
            self.check()
            self._write(released=True)
        except (ConflictError, UnavailableError) as error:
            _log.warning("lease not released: %s", error)

    def _renew(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            with suppress(UnavailableError):  # try again: the lease lasts until somebody takes it over
                try:
                    self.check()
                except ConflictError:
                    return
                self._beat += 1
                self._write(released=False)

    def _write(self, *, released: bool) -> None:
        state = _state(self._holder, self._nonce, beat=self._beat, released=released)
        self._store.put(_key(self._prefix, self.token), state)


class _Waiter:
    """Somebody who wants the lease, and what they have seen of its holder.

    Attributes:
        waits_for: who is in the way.
        somebody_lives: whether the holder, or one of those before us, showed that they live while we looked.
    """

    def __init__(self, store: ObjectStore, prefix: str, *, ttl: float, holder: str, place: int | None = None) -> None:
        self._store, self._prefix, self._ttl, self._holder = store, prefix, ttl, holder
        self._nonce = uuid4().hex
        self.pause = min(1.0, ttl / _LOOKS)
        self._silence = Silence(self.pause)
        who = f"{holder} {self._nonce}"
        self.turn = Turn(store, _queue(prefix), ttl=ttl, pause=self.pause, who=who, place=place)
        self.waits_for, self.somebody_lives = "somebody", False

    def look(self) -> Lease | None:
        """Take the lease if it is free.

        Raises:
            UnavailableError: the store does not answer, or does not honour create-if-absent.
        """
        number = max(_numbers(self._store, self._prefix), default=0)
        try:
            data = self._store.get(_key(self._prefix, number)) if number else b""
        except NotFoundError:
            return None  # others moved on by several numbers between the two reads
        state = _parse(data)
        if number and state.get("nonce") == self._nonce:
            return self._held(number)  # created by a call whose answer was lost
        (silent,) = self._silence.look({str(number): data}).values()
        come = self.turn.has_come()
        free = not number or state.get("released") is True or silent >= self._ttl
        if free and come:
            return self._take(number + 1)
        self.waits_for = "somebody who came before" if free else str(state.get("holder", "somebody"))
        self.somebody_lives = self.turn.somebody_lives or (bool(self._silence.alive) and not free)
        return None

    def _take(self, number: int) -> Lease | None:
        key, state = _key(self._prefix, number), _state(self._holder, self._nonce)
        if not self._store.create(key, state):
            return None
        if self._store.create(key, state):
            raise UnavailableError("The store does not honour If-None-Match, so it cannot hold a lease: use another.")
        numbers = sorted(_numbers(self._store, self._prefix))
        if numbers[-1] != number:
            self._store.delete(key)  # a number of long ago, deleted since we looked
            return None
        for old in numbers[:-_KEEP]:
            self._store.delete(_key(self._prefix, old))
        return self._held(number)

    def _held(self, number: int) -> Lease:
        held = Lease(self._store, self._prefix, number, holder=self._holder, nonce=self._nonce)
        held.start(self._ttl)
        return held


@contextmanager
def lease(
    store: ObjectStore,
    name: str,
    *,
    ttl: float,
    holder: str,
    timeout: float | None = None,
    on_wait: Callable[[str], None] | None = None,
    place: int | None = None,
) -> Iterator[Lease]:
    """Hold the lease `name` for the body of a `with`; wait for it first.

    Args:
        store: where everybody who wants the lease looks.
        name: what is leased, for example a lineage; part of a key.
        ttl: seconds of silence after which a holder counts as dead; the same for everybody.
        holder: who we are, for the others to read.
        timeout: seconds to wait for those who live, at most; whether they do shows in `ttl` seconds, or as long as a
            place is kept, and the dead are succeeded. None waits for ever, through outages of the store too.
        on_wait: called with a line that says what is waited for, once for each thing.
        place: one in the queue that `take_place` took earlier; None queues up now.

    Raises:
        BusyError: somebody who lives still holds it, or stands before us, after `timeout`.
        UnavailableError: the store still does not answer after `timeout`.
        InputError: the name cannot be part of a key, or `ttl` is not positive.
    """
    if ttl <= 0:
        raise InputError("A lease needs a ttl above zero.", param="ttl")
    waiter = _Waiter(store, _folder(name), ttl=ttl, holder=holder, place=place)
    try:
        held = _wait(waiter, timeout=timeout, on_wait=on_wait)
    finally:
        with suppress(UnavailableError):  # the others let it lapse
            waiter.turn.leave()
    try:
        yield held
    finally:
        held.release()


def take_place(store: ObjectStore, name: str, *, holder: str, patience: float = 600.0) -> int:
    """Queue up for the lease `name` and return the place, for a `lease` that is asked for later.

    The place is kept for who comes within `patience` seconds; who comes later has it again if nobody took it.

    Raises:
        InputError: the name cannot be part of a key.
        UnavailableError: the store does not answer.
    """
    return queue_up(store, _queue(_folder(name)), holder, patience=patience)


def leave_place(store: ObjectStore, name: str, place: int) -> None:
    """Give up a place that `take_place` took, when nobody will come for it.

    Raises:
        UnavailableError: the store does not answer; those behind wait their `ttl` then.
    """
    Turn(store, _queue(_folder(name)), ttl=1.0, pause=1.0, who="", place=place).leave()


def beats(store: ObjectStore) -> dict[str, bytes]:
    """Name -> what its holder wrote last, for every lease that is not released; it changes as long as the holder lives.

    Raises:
        UnavailableError: the store does not answer.
    """
    newest = {key.rpartition("/")[0]: key for key in store.list(f"{LEASES}/") if key.rpartition("/")[2].isdecimal()}
    found = {}
    for folder, key in newest.items():
        with suppress(NotFoundError):
            data = store.get(key)
            if not folder.endswith("/queue") and _parse(data).get("released") is not True:
                found[folder.removeprefix(f"{LEASES}/")] = data
    return found


def _wait(waiter: _Waiter, *, timeout: float | None, on_wait: Callable[[str], None] | None) -> Lease:
    deadline = None if timeout is None else time.monotonic() + timeout
    told = ""
    while True:
        reason: BusyError | UnavailableError
        try:
            held, decided = waiter.look(), waiter.somebody_lives
            reason = BusyError(f"{waiter.waits_for} is at work on it.", retry_after=waiter.pause)
        except UnavailableError as error:
            held, decided, reason = None, True, error
        if held:
            return held
        if decided and deadline is not None and time.monotonic() >= deadline:
            raise reason
        if on_wait and reason.message != told:
            told = reason.message
            on_wait(told)
        # Who stands far behind looks less often: a look reads every place before one's own.
        time.sleep(waiter.pause * random.uniform(0.5, 1.0) * min(1 + waiter.turn.ahead / 4, 2))  # noqa: S311


def _folder(name: str) -> str:
    return f"{LEASES}/{name}/"


def _queue(folder: str) -> str:
    return f"{folder}queue/"


def _key(prefix: str, number: int) -> str:
    return f"{prefix}{number:0{_DIGITS}d}"


def _numbers(store: ObjectStore, prefix: str) -> list[int]:
    tails = (key.removeprefix(prefix) for key in store.list(prefix))
    return [int(tail) for tail in tails if tail.isdecimal()]


def _state(holder: str, nonce: str, *, beat: int = 0, released: bool = False) -> bytes:
    return json.dumps({"holder": holder, "nonce": nonce, "beat": beat, "released": released}).encode()


def _parse(data: bytes) -> dict[str, object]:
    """A lease object's content; garbage counts as held by nobody we know, until a ttl of silence."""
    try:
        state = json.loads(data)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}
