"""Follows the registry's aliases into the bank, by polling; a hint makes the next look come at once.

The registry is the truth. `live` moves a pointer once its version is here and sound. What may be live next, `candidate`
and a lineage's canary, is fetched ahead, so that a promotion has nothing to wait for.

Versions are fetched beside the looks (`fetches.py`): one that comes slowly, or whose store does not answer, holds up
its own lineage and no other. Pointers are moved only by the thread that looks, to what the registry said a moment ago.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future
from dataclasses import dataclass

from cp_serve.bank import Bank
from cp_serve.fetches import Fetches, Key
from cp_serve.metrics import Metrics
from cp_serve.rollout import Rollout
from services.canary import Canary, Targets
from services.errors import PalimpsestError, UnavailableError
from services.lineage import Registry

log = logging.getLogger("palimpsest.follower")

_PATIENT = 3  # fetches that failed for want of files, before a new replica serves without them
_AGAIN_SECONDS = 60.0
"""Age of a refusal after which the version is tried again, one at a look."""
_AT_ONCE, _AHEAD_AT_ONCE = 4, 2
"""Versions fetched at once: those that are live, and those that may be next."""


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


class Follower:
    """A thread that looks at the registry every `seconds`, and when it is told to.

    Args:
        registry: what is followed.
        bank: what follows.
        seconds: between two looks.
        patience: seconds that a look waits for versions that have just become live; they may come later, too.
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
        patience: float = 0.5,
        metrics: Metrics | None = None,
        forget: Callable[[Set[tuple[str, int]]], None] = lambda _: None,
    ) -> None:
        self._registry, self._bank, self._seconds, self._patience = registry, bank, seconds, patience
        self._forget_elsewhere = forget
        self._metrics = metrics or Metrics()
        self.seen: Mapping[str, Targets] = {}
        self.refused: dict[str, Refusal] = {}  # replaced, never changed: others read it
        self.rollout = Rollout()
        self.synced = threading.Event()
        self._ready: dict[Key, bool] = {}  # fetched ahead, and whether it is sound and passed its gate
        self._wanted: Mapping[str, int] | None = None  # live versions at the last look
        self._failures = Counter[str]()  # of fetching a lineage's live version
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._live = Fetches(self._fetch, _AT_ONCE, self._wake.set)
        self._ahead = Fetches(self._fetch_ahead, _AHEAD_AT_ONCE, self._wake.set)
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
        self._live.stop()
        self._ahead.stop()

    @property
    def under_way(self) -> int:
        """Versions that are being fetched."""
        return len(self._live) + len(self._ahead)

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
                self._report(_why(error))
            else:
                self._report(None)
            if self._settled():
                self.synced.set()
            self._wake.wait(self._seconds)

    def look(self) -> None:
        """Compare the registry with the bank once, and move what moved and is here.

        Raises:
            UnavailableError: the registry, or the files of a version, cannot be had now; all others were moved.
        """
        self.seen = targets = self._registry.targets()
        self._looked = time.monotonic()
        self._wanted = wanted = {name: target.live for name, target in targets.items() if target.live is not None}
        created = {name: target.created for name, target in targets.items()}
        for lineage in self._bank.keep(wanted, created):
            log.info("%s has no live version any more", lineage)
        self._forget(targets)
        missing = self._follow_live(wanted)
        self._look_ahead(targets)
        if missing:
            raise missing

    def _follow_live(self, wanted: Mapping[str, int]) -> UnavailableError | None:
        """Move the pointers of lineages whose version is here; what a version lacks that could not be had now."""
        self._live.begin((lineage, wanted[lineage]) for lineage in self._moved(wanted))
        missing = None
        for (lineage, number), fetched in self._live.take(seconds=self._patience).items():
            error = fetched.exception()
            if isinstance(error, UnavailableError):
                missing = error
                self._failures[lineage] += 1
            elif wanted.get(lineage) == number:  # else it moved on meanwhile
                self._arrive(lineage, number, error)
        return missing

    def _fetch(self, lineage: str, number: int) -> None:
        self._bank.get(lineage, number, anew=True)

    def _settled(self) -> bool:
        """Whether every live version is here or refused, or its files could not be had time and again: what one lineage
        lacks must not keep a replica from serving all others.
        """
        here = self._bank.pointers()
        return self._wanted is not None and all(
            here.get(name) == number or name in self.refused or self._failures[name] >= _PATIENT
            for name, number in self._wanted.items()
        )

    def _arrive(self, lineage: str, number: int, error: BaseException | None) -> None:
        """Move one pointer, or keep it where it is: what is wrong with one version holds up no other lineage."""
        if error:
            self._refuse(lineage, Refusal(number, _why(error), time.monotonic()))
            return
        self._bank.point(lineage, number)
        self.refused = {name: refusal for name, refusal in self.refused.items() if name != lineage}
        log.info("%s is now served by version %d", lineage, number)

    def _forget(self, targets: Mapping[str, Targets]) -> None:
        """Let go of what was deleted for good. At every look: a request that began before may bring a version back."""
        deleted = {(name, number) for name, target in targets.items() for number in target.deleted}
        if deleted:
            self._bank.forget(deleted)
            self._forget_elsewhere(deleted)

    def _look_ahead(self, targets: Mapping[str, Targets]) -> None:
        """Have candidates and canaries ready; canaries that are not sound, or failed their gate, get no requests."""
        canaries = {name: target.canary for name, target in targets.items() if target.canary}
        wanted = {(name, canary.number) for name, canary in canaries.items()}
        wanted |= {(name, target.candidate) for name, target in targets.items() if target.candidate is not None}
        for key, fetched in self._ahead.take().items():
            self._came_ahead(key, fetched)
        self._ready = {key: ready for key, ready in self._ready.items() if key in wanted}
        self._ahead.begin(wanted - self._ready.keys())
        self.rollout.follow({name: c for name, c in canaries.items() if self._may_draw(name, c)})

    def _fetch_ahead(self, lineage: str, number: int) -> bool:
        """Whether the gate let it pass."""
        self._bank.get(lineage, number, anew=True)
        return self._registry.version(lineage, number).gate_passed

    def _came_ahead(self, key: Key, fetched: Future[bool]) -> None:
        error = fetched.exception()
        if error is None:
            self._ready[key] = fetched.result()
        elif not isinstance(error, UnavailableError):  # which is begun again
            self._ready[key] = False
            log.error("%s@%d will not be served: %s", *key, _why(error))

    def _may_draw(self, lineage: str, canary: Canary) -> bool:
        """Whether a canary is here to draw; one that must not, or has failed, is ended in the registry too."""
        ready = self._ready.get((lineage, canary.number))
        if ready is False and self._end(lineage, canary.number, "it is not sound, or failed its gate"):
            log.error("%s@%d is no canary any more: it is not sound, or failed its gate", lineage, canary.number)
            self._metrics.canary_returns.inc()
        elif self.rollout.ended(lineage, canary.number):
            self._end(lineage, canary.number, "it failed more often than the live version")
        return bool(ready)

    def _end(self, lineage: str, number: int, reason: str) -> bool:
        """End a canary in the registry; while that cannot be reached it draws nothing here, and every look tries."""
        try:
            self._registry.end_canary(lineage, number, reason=reason, via="serving")
        except PalimpsestError as error:
            log.warning("the canary of %s could not be ended in the registry: %s", lineage, error.message)
            return False
        return True

    def _moved(self, wanted: Mapping[str, int]) -> list[str]:
        """Lineages whose live version is neither here nor refused, and one whose refusal is old: it may be mended."""
        here, refused = self._bank.pointers(), self.refused.items()
        self.refused = {name: old for name, old in refused if wanted.get(name) == old.number != here.get(name)}
        moved = [name for name, number in wanted.items() if here.get(name) != number and name not in self.refused]
        oldest = min(self.refused, key=lambda name: self.refused[name].since, default=None)
        if oldest and time.monotonic() - self.refused[oldest].since > _AGAIN_SECONDS:
            moved.append(oldest)
        return moved

    def _refuse(self, lineage: str, refusal: Refusal) -> None:
        self.refused = {**self.refused, lineage: refusal}
        log.error("%s@%d is refused, the version before it stays: %s", lineage, refusal.number, refusal.why)

    def _report(self, trouble: str | None) -> None:
        """Log when the registry goes away and when it is back, not at every look."""
        if trouble is not None and self._reachable:
            log.warning("serving what is in memory: %s", trouble)
        elif trouble is None and not self._reachable:
            log.warning("the registry answers again")
        self._reachable = trouble is None


def _why(error: BaseException) -> str:
    """What an error may say in a log: ours is written for people, others only have their names."""
    return error.message if isinstance(error, PalimpsestError) else type(error).__name__
