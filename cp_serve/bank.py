"""Adapter versions in memory, and which of them is live.

Slots are immutable. A hot swap is a pointer change: a request keeps the slot it started with. A version is fetched and
verified beside the old one before any pointer moves; whatever fails leaves the old one. What does not fit in memory is
dropped, least recently used first, live versions last, and never what a running request holds.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass

from cp_serve.metrics import Metrics
from services.adapter import Adapter
from services.base_model import BaseModel
from services.errors import NotFoundError, PalimpsestError, RefusedError
from services.lineage import Registry
from services.manifest import Manifest

_Key = tuple[str, int]

REFUSED_SECONDS = 2.0
"""For so long a version that was refused, or is not there, is not asked for again by requests."""


@dataclass(frozen=True, eq=False)
class Slot:
    """One verified version."""

    lineage: str
    number: int
    manifest: Manifest
    adapter: Adapter

    @property
    def model(self) -> str:
        """`lineage@number`."""
        return f"{self.lineage}@{self.number}"

    @property
    def digest(self) -> str:
        """The version's digest."""
        return self.manifest.digest


class Bank:
    """All slots of a replica, and the live pointer of every lineage. Safe to use from many threads.

    Args:
        registry: where versions come from.
        base: what they must be made for.
        max_bytes: memory that the slots may take; those that are held may take more.
        metrics: where to count.
    """

    def __init__(
        self, registry: Registry, base: BaseModel, *, max_bytes: int = 2**40, metrics: Metrics | None = None
    ) -> None:
        self._registry, self._base, self._max_bytes = registry, base, max_bytes
        self._metrics = metrics or Metrics()
        self._lock = threading.Lock()  # guards everything below; never held while fetching
        self._slots: dict[_Key, Slot] = {}  # least recently used first
        self._live: dict[str, int] = {}
        self._held: Counter[Slot] = Counter()
        self._turns: dict[_Key, threading.Lock] = {}
        self._failed: dict[_Key, tuple[float, PalimpsestError]] = {}
        self._created: dict[str, int] = {}
        self._bytes = 0
        self._swapped = time.monotonic()

    def live(self, lineage: str) -> Slot | None:
        """The version that the lineage's live pointer is at, if it is in memory."""
        with self._lock:
            return self._use((lineage, self._live.get(lineage, 0)))

    def here(self, lineage: str, number: int) -> Slot | None:
        """A version, if it is in memory. Asks nobody, so that it never waits for an outage."""
        with self._lock:
            return self._use((lineage, number))

    def __contains__(self, key: _Key) -> bool:
        """Whether a version, (lineage, number), is in memory. To ask is not to use it."""
        with self._lock:
            return key in self._slots

    def pointers(self) -> dict[str, int]:
        """Lineage -> number of its live version here."""
        with self._lock:
            return dict(self._live)

    def get(self, lineage: str, number: int, *, anew: bool = False, ahead: bool = False) -> Slot:
        """A version, fetched and verified unless it is here already. Blocks; denoising goes on.

        A version is fetched once, however many ask for it; a slow one holds up nobody who asks for another.

        Args:
            lineage, number: the version.
            anew: fetch it though it was refused a moment ago.
            ahead: nobody needs it yet, so no live version goes to make room for it.

        Raises:
            NotFoundError: no such version.
            RefusedError: it failed verification.
            UnavailableError: registry or store does not answer.
        """
        key = (lineage, number)
        with self._lock:
            if slot := self._use(key):
                return slot
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if slot := self._use(key):
                    return slot
                since, error = self._failed.get(key, (0.0, None))
            if error and not anew and time.monotonic() - since < REFUSED_SECONDS:
                raise error
            return self._fetch(key, ahead=ahead)

    @contextmanager
    def hold(self, slot: Slot) -> Iterator[Slot]:
        """Keep a slot in memory for as long as a request needs it.

        One that has left the bank meanwhile is not put back: its lineage may have been deleted and made again, and
        then its place is another version's. Whoever holds it draws with it all the same.
        """
        with self._lock:
            self._held[slot] += 1
        try:
            yield slot
        finally:
            with self._lock:
                self._held[slot] -= 1
                if not self._held[slot]:
                    del self._held[slot]
                    self._evict()

    def point(self, lineage: str, number: int) -> None:
        """Point the lineage at a version that `get` has just returned."""
        with self._lock:
            self._live[lineage] = number
            self._swapped = time.monotonic()
        self._metrics.swaps.inc()

    def keep(self, live: Mapping[str, int], created: Mapping[str, int]) -> set[str]:
        """Forget lineages that are gone, and those of the same name that were made later than what is here.

        Args:
            live: lineages that have a live version; the pointers of others go.
            created: when each lineage was made.

        Returns:
            Those whose pointer went.
        """
        with self._lock:
            other = {name for name, moment in self._created.items() if created.get(name) != moment}
            gone = {name for name in self._live if name not in live or name in other}
            for name in gone:
                del self._live[name]
            for key in [key for key in self._slots if key[0] in other or key[0] not in created]:
                self._drop(key)
            self._failed = {key: why for key, why in self._failed.items() if key[0] not in other}
            self._turns = {key: turn for key, turn in self._turns.items() if turn.locked()}
            self._created = dict(created)
        return gone

    def forget(self, deleted: Set[tuple[str, int]]) -> None:
        """Drop versions that were deleted for good, live or not. A request that draws with one keeps it to its end."""
        with self._lock:
            for key in deleted & self._slots.keys():
                self._drop(key)
            self._live = {name: number for name, number in self._live.items() if (name, number) not in deleted}

    def measure(self) -> None:
        """Bring the gauges up to date."""
        with self._lock:
            self._metrics.bank_bytes.set(self._bytes)
            self._metrics.bank_versions.set(len(self._slots))
            self._metrics.swap_age.set(time.monotonic() - self._swapped)

    def _fetch(self, key: _Key, *, ahead: bool) -> Slot:
        with self._lock:
            created = self._created.get(key[0])
        try:
            manifest, adapter = self._registry.fetch(*key, layout=self._base.layout, base=self._base.ref)
        except (NotFoundError, RefusedError) as error:
            self._refuse(key, error)
            raise
        slot = Slot(*key, manifest, adapter.to(self._base.device))
        with self._lock:
            self._failed.pop(key, None)
            if there := self._use(key):
                return there
            if self._created.get(key[0]) == created:  # else the name was made anew while this was read
                self._keep_in(key, slot)
                self._evict(spared=None if ahead else slot)
        return slot

    def _refuse(self, key: _Key, error: PalimpsestError) -> None:
        if isinstance(error, RefusedError):
            self._metrics.refused.inc()
        now = time.monotonic()
        with self._lock:
            young = {k: why for k, why in self._failed.items() if now - why[0] < REFUSED_SECONDS}
            self._failed = {**young, key: (now, error)}

    def _use(self, key: _Key) -> Slot | None:
        """A slot in memory, which was used just now."""
        if slot := self._slots.pop(key, None):
            self._slots[key] = slot
        return slot

    def _keep_in(self, key: _Key, slot: Slot) -> None:
        self._slots[key] = slot
        self._bytes += slot.adapter.bytes()

    def _drop(self, key: _Key) -> None:
        self._bytes -= self._slots.pop(key).adapter.bytes()

    def _evict(self, spared: Slot | None = None) -> None:
        """Let slots go until the rest fits."""
        if self._bytes <= self._max_bytes:
            return
        free = [key for key, slot in self._slots.items() if slot not in self._held and slot is not spared]
        for key in sorted(free, key=lambda key: self._live.get(key[0]) == key[1]):
            if self._bytes <= self._max_bytes:
                return
            self._drop(key)
