"""The canaries that this replica follows: which requests they get, and which of them have failed."""

import threading
from collections.abc import Mapping

from services.canary import Canary, Trial


class Rollout:
    """The trials of all lineages. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trials: dict[str, Trial] = {}
        self._ended: set[tuple[str, int]] = set()

    def follow(self, canaries: Mapping[str, Canary]) -> None:
        """What the registry says now. A canary that failed here stays ended until the registry has no more of it."""
        with self._lock:
            self._trials = {name: Trial.continued(self._trials.get(name), c) for name, c in canaries.items()}
            self._ended &= {(name, canary.number) for name, canary in canaries.items()}

    def pick(self, lineage: str) -> int | None:
        """The canary's number if the next request of a lineage is its, else None."""
        with self._lock:
            trial = self._trials.get(lineage)
            if trial is None or (lineage, trial.canary.number) in self._ended:
                return None
            return trial.canary.number if trial.next() else None

    def ended(self, lineage: str, number: int) -> bool:
        """Whether a version was a canary here and has failed; whoever follows the registry says so there."""
        with self._lock:
            return (lineage, number) in self._ended

    def record(self, lineage: str, *, canary: bool, failed: bool) -> int | None:
        """How a request of one arm ended; the canary's number if that was the one failure too many."""
        with self._lock:
            trial = self._trials.get(lineage)
            if trial is None or (key := (lineage, trial.canary.number)) in self._ended:
                return None
            trial.record(canary=canary, failed=failed)
            if not trial.failed:
                return None
            self._ended.add(key)
            return trial.canary.number
