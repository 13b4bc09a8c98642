"""What may be live next, `candidate` and canary, is fetched ahead, so that a promotion has nothing to wait for.

A canary draws once it is here, sound, and has passed its gate. One that must not draw, or has failed, draws nothing
here from then on, and is ended in the registry beside the looks.
"""

import logging
import time
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future
from dataclasses import dataclass

from cp_serve.background import Background
from cp_serve.bank import Bank
from cp_serve.metrics import Metrics
from cp_serve.rollout import Rollout
from services.canary import Canary, Targets
from services.errors import UnavailableError
from services.lineage import Registry
from services.telemetry import gist

log = logging.getLogger("palimpsest.follower")

_AT_ONCE = 2
_AGAIN_SECONDS = 60.0
"""Age of a fetch after which a version that had to leave memory since is fetched again, one at a look."""
_UNFIT = "it is not sound, or failed its gate"
_FAILED = "it failed more often than the live version"

_Key = tuple[str, int]


@dataclass(frozen=True)
class Verdict:
    """What came of fetching a version.

    Attributes:
        sound: it stood verification.
        passed: its gate let it pass.
        since: time.monotonic() of that.
    """

    sound: bool
    passed: bool
    since: float


class Ahead:
    """Belongs to the thread that looks at the registry.

    Args:
        registry: where versions come from, and canaries are ended.
        bank: where they are put.
        rollout: is told the canaries that may draw.
        metrics: where to count.
        came: called, in another thread, when a version has been fetched.
    """

    def __init__(
        self, registry: Registry, bank: Bank, rollout: Rollout, metrics: Metrics, came: Callable[[], None]
    ) -> None:
        self._registry, self._bank, self._rollout, self._metrics = registry, bank, rollout, metrics
        self._verdicts: dict[_Key, Verdict] = {}
        self._fetches = Background(self._fetch, _AT_ONCE, came)
        self._endings = Background(self._end, 1)

    def __len__(self) -> int:
        """Versions that are being fetched."""
        return len(self._fetches)

    def follow(self, targets: Mapping[str, Targets]) -> None:
        """Have what the registry names fetched, and let canaries draw that may. Waits for nobody."""
        canaries = {name: target.canary for name, target in targets.items() if target.canary}
        wanted = {(name, canary.number) for name, canary in canaries.items()}
        wanted |= {(name, target.candidate) for name, target in targets.items() if target.candidate is not None}
        for key, fetched in self._fetches.take().items():
            self._judge(key, fetched)
        self._verdicts = {key: verdict for key, verdict in self._verdicts.items() if key in wanted}
        self._fetches.begin((wanted - self._verdicts.keys()) | self._evicted())
        self._rollout.follow({name: c for name, c in canaries.items() if self._may_draw(name, c)})
        self._end_canaries(canaries)

    def stop(self) -> None:
        """Finish what has begun."""
        self._fetches.stop()
        self._endings.stop()

    def _fetch(self, lineage: str, number: int) -> bool:
        """Whether the gate let it pass."""
        self._bank.get(lineage, number, anew=True, ahead=True)
        return self._registry.version(lineage, number).gate_passed

    def _judge(self, key: _Key, fetched: Future[bool]) -> None:
        error, now = fetched.exception(), time.monotonic()
        if error is None:
            self._verdicts[key] = Verdict(sound=True, passed=fetched.result(), since=now)
        elif not isinstance(error, UnavailableError):  # which is begun again
            self._verdicts[key] = Verdict(sound=False, passed=False, since=now)
            log.error("%s@%d will not be served: %s", *key, gist(error))

    def _evicted(self) -> Set[_Key]:
        """The version, if there is one, that has been out of memory for longest. Where memory is short for good, it
        must not be fetched all the time.
        """
        long_ago = time.monotonic() - _AGAIN_SECONDS
        gone = {
            key: verdict.since
            for key, verdict in self._verdicts.items()
            if verdict.sound and verdict.since <= long_ago and key not in self._bank
        }
        return {min(gone, key=gone.__getitem__)} if gone else set()

    def _may_draw(self, lineage: str, canary: Canary) -> bool:
        verdict = self._verdicts.get((lineage, canary.number))
        return verdict is not None and verdict.sound and verdict.passed

    def _end_canaries(self, canaries: Mapping[str, Canary]) -> None:
        """Have those ended that must not draw, or have failed; while the registry cannot do it, every look tries."""
        for (lineage, number, reason), ending in self._endings.take().items():
            if error := ending.exception():
                log.warning("the canary of %s could not be ended in the registry: %s", lineage, gist(error))
            elif ending.result() and reason == _UNFIT:  # one that failed was counted when it did
                log.error("%s@%d is no canary any more: %s", lineage, number, reason)
                self._metrics.canary_returns.inc()
        for lineage, canary in canaries.items():
            if (lineage, canary.number) in self._verdicts and not self._may_draw(lineage, canary):
                self._endings.begin([(lineage, canary.number, _UNFIT)])
            elif self._rollout.ended(lineage, canary.number):
                self._endings.begin([(lineage, canary.number, _FAILED)])

    def _end(self, lineage: str, number: int, reason: str) -> bool:
        return self._registry.end_canary(lineage, number, reason=reason, via="serving")
