"""Follows the registry's aliases into the bank, by polling; a hint makes the next look come at once.

The registry is the truth. A look asks MLflow once and waits for nothing else: where `live` has moved to a version in
memory, its pointer moves in that look. Whatever takes its time is done beside the looks (`background.py`): versions are
fetched, so that one that comes slowly, or whose store does not answer, holds up its own lineage alone; and what was
moved in MLflow itself is written into the audit log. Pointers are moved only by the thread that looks, to what the
registry said a moment ago. `ahead.py` has what may be live next.

A version that is refused leaves the one before it. A replica that has none of a lineage yet, as it has just begun,
takes the latest sound one that was live before.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass

from cp_serve.ahead import Ahead
from cp_serve.background import Background
from cp_serve.bank import Bank
from cp_serve.metrics import Metrics
from cp_serve.rollout import Rollout
from services.canary import Targets
from services.errors import NotFoundError, RefusedError, UnavailableError
from services.lineage import Registry
from services.telemetry import gist

log = logging.getLogger("palimpsest.follower")

_PATIENT = 3  # fetches that failed for want of files, before a new replica serves without them
_AGAIN_SECONDS = 60.0
"""Age of a refusal after which the version is tried again, one at a look."""
_AT_ONCE = 4
"""Live versions fetched at once."""


@dataclass(frozen=True)
class Refusal:
    """A version that is not served.

    Attributes:
        number: the version.
        why: one line.
        since: time.monotonic() of the last try.
    """

    number: int
    why: str
    since: float


@dataclass(frozen=True)
class Fetched:
    """What came of fetching a live version.

    Attributes:
        error: why it is refused, if it is.
        stand_in: a version in memory that was live before it, where it is refused and nothing else is served.
    """

    error: Exception | None = None
    stand_in: int | None = None


class Follower:
    """A thread that looks at the registry every `seconds`, and when it is told to.

    Args:
        registry: what is followed.
        bank: what follows.
        seconds: between two looks.
        metrics: where to count.
        forget: called at every look with the versions, (lineage, number), that were deleted for good, so that whoever
            else keeps something of them lets it go.

    Attributes:
        seen: what the registry said at the last look; replaced, never changed.
        refused: lineage -> why its live version is not served; the one before stays. Tried again now and then.
        rollout: the canaries whose versions are here and sound.
        synced: set once every live version was loaded or refused, or was out of reach three times.
    """

    def __init__(
        self,
        registry: Registry,
        bank: Bank,
        *,
        seconds: float,
        metrics: Metrics | None = None,
        forget: Callable[[Set[tuple[str, int]]], None] = lambda _: None,
    ) -> None:
        self._registry, self._bank, self._seconds = registry, bank, seconds
        self._forget_elsewhere = forget
        self._metrics = metrics or Metrics()
        self.seen: Mapping[str, Targets] = {}
        self.refused: dict[str, Refusal] = {}  # replaced, never changed: others read it
        self.rollout = Rollout()
        self.synced = threading.Event()
        self._wanted: Mapping[str, int] | None = None  # live versions at the last look
        self._failures = Counter[str]()  # of fetching a lineage's live version
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._fetches = Background(self._fetch, _AT_ONCE, self._wake.set)
        self._ahead = Ahead(registry, bank, self.rollout, self._metrics, self._wake.set)
        self._records = Background(registry.record_found, 1)
        self._reachable = True
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def hint(self) -> None:
        """Look at the registry now. It is only a hint: what it says is read there."""
        self._wake.set()

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self._metrics.look_age.set(time.monotonic() - self._looked)

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._fetches.stop()
        self._ahead.stop()
        self._records.stop()

    @property
    def under_way(self) -> int:
        """Versions that are being fetched."""
        return len(self._fetches) + len(self._ahead)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()  # a hint that comes while we look makes us look again
            try:
                self.look()
            except Exception as error:  # whatever the registry answers, what is in memory is served on
                self._report(gist(error))
            else:
                self._report(None)
            if self._settled():
                self.synced.set()
            self._wake.wait(self._seconds)

    def look(self) -> None:
        """Compare the registry with the bank once, move what moved and is here, and have fetched what is not.

        Raises:
            UnavailableError: the registry cannot be had now; or the files of a version could not, for which an earlier
                look had asked: all others were moved.
        """
        self.seen = targets = self._registry.targets()
        self._looked = time.monotonic()
        self._wanted = wanted = {name: target.live for name, target in targets.items() if target.live is not None}
        created = {name: target.created for name, target in targets.items()}
        for lineage in self._bank.keep(wanted, created):
            log.info("%s has no live version any more", lineage)
        self._forget(targets)
        missing = self._take(wanted)
        self._follow_live(wanted)
        self._ahead.follow(targets)
        self._record(targets)
        if missing:
            raise missing

    def _take(self, wanted: Mapping[str, int]) -> UnavailableError | None:
        """Serve what has come since the last look; what a version lacks that could not be had."""
        missing = None
        for (lineage, number), fetched in self._fetches.take().items():
            error = fetched.exception()
            if isinstance(error, UnavailableError):
                missing = error
                self._failures[lineage] += 1
            elif wanted.get(lineage) == number:  # else it moved on meanwhile
                self._arrive(lineage, number, fetched.result())
        return missing

    def _follow_live(self, wanted: Mapping[str, int]) -> None:
        """Move the pointers of lineages whose version is in memory, and have the others fetched."""
        for lineage in self._moved(wanted):
            key = (lineage, wanted[lineage])
            if key in self._bank:
                self._point(*key)
            else:
                self._fetches.begin([key])

    def _moved(self, wanted: Mapping[str, int]) -> list[str]:
        """Lineages whose live version is neither here nor refused, and one whose refusal is old: it may be mended."""
        here, refused = self._bank.pointers(), self.refused.items()
        self.refused = {name: old for name, old in refused if wanted.get(name) == old.number != here.get(name)}
        moved = [name for name, number in wanted.items() if here.get(name) != number and name not in self.refused]
        oldest = min(self.refused, key=lambda name: self.refused[name].since, default=None)
        if oldest and time.monotonic() - self.refused[oldest].since > _AGAIN_SECONDS:
            moved.append(oldest)
        return moved

    def _fetch(self, lineage: str, number: int) -> Fetched:
        """Bring a live version into memory, or one that stands in for it. Raises UnavailableError."""
        try:
            self._bank.get(lineage, number, anew=True)
        except UnavailableError:
            raise
        except Exception as error:  # whatever is wrong with one version, it holds up no other lineage
            return Fetched(error, None if lineage in self._bank.pointers() else self._stand_in(lineage, number))
        return Fetched()

    def _stand_in(self, lineage: str, number: int) -> int | None:
        """The latest sound version that was live before one, now in memory. Raises UnavailableError."""
        with suppress(RefusedError):  # the log was changed: nobody knows what was live
            for earlier in self._registry.live_before(lineage, number):
                with suppress(NotFoundError, RefusedError):
                    return self._bank.get(lineage, earlier).number
        return None

    def _arrive(self, lineage: str, number: int, fetched: Fetched) -> None:
        """Move one pointer, or keep it where it is: what is wrong with one version holds up no other lineage."""
        if fetched.error is None:
            self._point(lineage, number)
            return
        self._refuse(lineage, number, fetched.error)
        if fetched.stand_in is not None and lineage not in self._bank.pointers():
            self._point(lineage, fetched.stand_in)

    def _point(self, lineage: str, number: int) -> None:
        self._bank.point(lineage, number)
        log.info("%s is now served by version %d", lineage, number)

    def _refuse(self, lineage: str, number: int, error: Exception) -> None:
        if not isinstance(error, RefusedError):  # the bank counts those, whoever wants the version
            self._metrics.refused.inc()
        self.refused = {**self.refused, lineage: Refusal(number, gist(error), time.monotonic())}
        log.error("%s@%d is refused, the version before it stays: %s", lineage, number, gist(error))

    def _settled(self) -> bool:
        """Whether every live version is here or refused, or its files could not be had time and again: what one lineage
        lacks must not keep a replica from serving all others.
        """
        here = self._bank.pointers()
        return self._wanted is not None and all(
            here.get(name) == number or name in self.refused or self._failures[name] >= _PATIENT
            for name, number in self._wanted.items()
        )

    def _forget(self, targets: Mapping[str, Targets]) -> None:
        """Let go of what was deleted for good. At every look: a request that began before may bring a version back."""
        deleted = {(name, number) for name, target in targets.items() for number in target.deleted}
        if deleted:
            self._bank.forget(deleted)
            self._forget_elsewhere(deleted)

    def _record(self, targets: Mapping[str, Targets]) -> None:
        """Have written down what was moved in MLflow itself, now that it is followed."""
        for (lineage,), record in self._records.take().items():
            if error := record.exception():
                log.warning("what was moved of %s in MLflow is not in the audit log yet: %s", lineage, gist(error))
        self._records.begin((name,) for name, target in targets.items() if target.unrecorded)

    def _report(self, trouble: str | None) -> None:
        """Log when the registry goes away and when it is back, not at every look."""
        if trouble is not None and self._reachable:
            log.warning("serving what is in memory: %s", trouble)
        elif trouble is None and not self._reachable:
            log.warning("the registry answers again")
        self._reachable = trouble is None
