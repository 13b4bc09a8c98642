"""Follows the registry's aliases into the bank, by polling; a hint makes the next look come at once.

The registry is the truth. `live` moves a pointer once its version is here and sound. What may be live next, `candidate`
and a lineage's canary, is fetched ahead, so that a promotion has nothing to wait for.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from cp_serve.bank import Bank
from cp_serve.metrics import Metrics
from cp_serve.rollout import Rollout
from services.canary import Canary, Targets
from services.errors import PalimpsestError, UnavailableError
from services.lineage import Registry

log = logging.getLogger("palimpsest.follower")

_AGAIN_SECONDS = 60.0
"""Age of a refusal after which the version is tried again, one at a look."""


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
        metrics: where to count.
        forget: called at every look with the versions, (lineage, number), that were deleted for good, so that whoever
            else keeps something of them lets it go.

    Attributes:
        refused: lineage -> why its live version is not served; the one before stays. Tried again now and then.
        rollout: the canaries whose versions are here and sound.
        synced: set once every live version was loaded or refused.
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
        self.refused: dict[str, Refusal] = {}  # replaced, never changed: others read it
        self.rollout = Rollout()
        self.synced = threading.Event()
        self._ahead: dict[tuple[str, int], bool] = {}  # fetched ahead, and whether it is sound and passed its gate
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._wake = threading.Event()
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
        """End the thread."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

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
                self.synced.set()
            self._wake.wait(self._seconds)

    def look(self) -> None:
        """Compare the registry with the bank once, and move what moved.

        Raises:
            UnavailableError: the registry, or the files of a version, cannot be had now; all others were moved.
        """
        targets = self._registry.targets()
        self._looked = time.monotonic()
        wanted = {name: target.live for name, target in targets.items() if target.live is not None}
        created = {name: target.created for name, target in targets.items()}
        for lineage in self._bank.keep(wanted, created):
            log.info("%s has no live version any more", lineage)
        self._forget(targets)
        missing = None
        for lineage in self._moved(wanted):
            try:
                self._move(lineage, wanted[lineage])
            except UnavailableError as error:
                missing = error
        self._fetch_ahead(targets)
        if missing:
            raise missing

    def _forget(self, targets: Mapping[str, Targets]) -> None:
        """Let go of what was deleted for good. At every look: a request that began before may bring a version back."""
        deleted = {(name, number) for name, target in targets.items() for number in target.deleted}
        if deleted:
            self._bank.forget(deleted)
            self._forget_elsewhere(deleted)

    def _fetch_ahead(self, targets: Mapping[str, Targets]) -> None:
        """Have candidates and canaries ready; canaries that are not sound, or failed their gate, get no requests."""
        canaries = {name: target.canary for name, target in targets.items() if target.canary}
        wanted = {(name, canary.number) for name, canary in canaries.items()}
        wanted |= {(name, target.candidate) for name, target in targets.items() if target.candidate is not None}
        self._ahead = {key: sound for key, sound in self._ahead.items() if key in wanted}
        for key in wanted - self._ahead.keys():
            self._fetch_one(key)
        self.rollout.follow({name: c for name, c in canaries.items() if self._may_draw(name, c)})

    def _fetch_one(self, key: tuple[str, int]) -> None:
        try:
            self._bank.get(*key, anew=True)
            self._ahead[key] = self._registry.version(*key).gate_passed
        except UnavailableError:
            return  # the next look tries again
        except Exception as error:
            self._ahead[key] = False
            log.error("%s@%d will not be served: %s", *key, _why(error))

    def _may_draw(self, lineage: str, canary: Canary) -> bool:
        """Whether a canary gets requests; one that must not is ended in the registry too."""
        sound = self._ahead.get((lineage, canary.number), None)
        if sound is False:
            log.error("%s@%d is no canary any more: it is not sound, or failed its gate", lineage, canary.number)
            self._registry.end_canary(lineage, canary.number)
            self._metrics.canary_returns.inc()
        return bool(sound)

    def _moved(self, wanted: Mapping[str, int]) -> list[str]:
        """Lineages whose live version is neither here nor refused, and one whose refusal is old: it may be mended."""
        here, refused = self._bank.pointers(), self.refused.items()
        self.refused = {name: old for name, old in refused if wanted.get(name) == old.number != here.get(name)}
        moved = [name for name, number in wanted.items() if here.get(name) != number and name not in self.refused]
        oldest = min(self.refused, key=lambda name: self.refused[name].since, default=None)
        if oldest and time.monotonic() - self.refused[oldest].since > _AGAIN_SECONDS:
            moved.append(oldest)
        return moved

    def _move(self, lineage: str, number: int) -> None:
        """Move one pointer. What is wrong with one version must not keep the others from being followed."""
        try:
            self._bank.go_live(lineage, number)
        except UnavailableError:
            raise
        except Exception as error:
            self._refuse(lineage, Refusal(number, _why(error), time.monotonic()))
        else:
            self.refused = {name: refusal for name, refusal in self.refused.items() if name != lineage}
            log.info("%s is now served by version %d", lineage, number)

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


def _why(error: Exception) -> str:
    """What an error may say in a log: ours is written for people, others only have their names."""
    return error.message if isinstance(error, PalimpsestError) else type(error).__name__
