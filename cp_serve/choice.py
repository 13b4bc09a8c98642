"""Which version draws a request, and how that went for it."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from cp_serve.bank import Bank, Slot
from cp_serve.metrics import Metrics
from cp_serve.rollout import Rollout
from services.canary import CANARY, Targets
from services.errors import (
    BusyError,
    DeadlineError,
    InputError,
    PalimpsestError,
    QuotaError,
    UnavailableError,
)
from services.lineage import CANDIDATE, LIVE, Registry

log = logging.getLogger("palimpsest.choice")

BASE = "base"
PINNED = "pinned"
_FETCHERS = 8
"""Versions that are read at once."""
_NOT_ITS_FAULT = (BusyError, QuotaError, DeadlineError, UnavailableError, InputError)
"""Errors that say nothing of a version."""
_T = TypeVar("_T")


async def run_in(executor: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    """Run blocking work beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


@dataclass(frozen=True)
class Choice:
    """The version pinned for a request; no slot is the base itself.

    Attributes:
        arm: `live`, `canary` or `pinned`.
    """

    lineage: str
    slot: Slot | None
    arm: str


class Chooser:
    """Chooses for one replica; its methods belong to one event loop.

    Args:
        registry: the truth.
        bank: what is in memory.
        rollout: the canaries.
        metrics: where to count.
        seen: what the registry said when it was last read, for when it does not answer.
        returned: called when a canary has failed: the registry is to be told.
    """

    def __init__(
        self,
        registry: Registry,
        bank: Bank,
        rollout: Rollout,
        metrics: Metrics,
        *,
        seen: Callable[[], Mapping[str, Targets]] = dict,
        returned: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry, self._bank, self._rollout, self._metrics = registry, bank, rollout, metrics
        self._seen, self._returned = seen, returned
        self._fetching = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        self._resolving = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="resolve")
        self._under_way: dict[tuple[str, int, bool], asyncio.Task[Slot]] = {}

    async def choose(self, lineage: str, version: str) -> Choice:
        """The version that a request names now; `live` is a canary's for its share of the requests.

        A lineage newer than the last look at the registry is looked up there.

        Raises:
            NotFoundError: no such lineage or version.
            RefusedError: the version failed verification.
            UnavailableError: it is not in memory, and the registry does not answer.
        """
        if lineage == BASE:
            return Choice(lineage, None, PINNED)
        if version != LIVE:
            return Choice(lineage, await self.fetch(lineage, version), PINNED)
        if (number := self._rollout.pick(lineage)) and (slot := await self._canary(lineage, number)):
            return Choice(lineage, slot, CANARY)
        return Choice(lineage, self._bank.live(lineage) or await self.fetch(lineage, LIVE), LIVE)

    async def fetch(self, lineage: str, version: str, *, anew: bool = False) -> Slot:
        """A version by number or alias, into memory unless it is there. Raises as `choose` does.

        One that is there is had at once, even if all threads wait for a registry that does not answer; and all who want
        one that is not take a single thread.
        """
        if version.isdigit():
            number = int(version)
        else:
            number = await run_in(self._resolving, lambda: self._resolve(lineage, version))
        if slot := self._bank.here(lineage, number):
            return slot
        key = (lineage, number, anew)
        if (task := self._under_way.get(key)) is None:
            fetch = run_in(self._fetching, lambda: self._bank.get(lineage, number, anew=anew))
            task = self._under_way[key] = asyncio.ensure_future(fetch)
            task.add_done_callback(lambda done: self._arrived(key, done))
        return await asyncio.shield(task)  # whoever gives up leaves it to the others

    @contextmanager
    def counted(self, choice: Choice) -> Iterator[None]:
        """Count how a request ends; a canary that failed once too often is ended."""
        outcome = "drawn"
        failed: bool | None = False  # None: that says nothing of the version
        try:
            yield
        except asyncio.CancelledError:
            outcome, failed = "given_up", None  # by its client, or its deadline has passed
            raise
        except PalimpsestError as error:
            outcome, failed = error.code, None if isinstance(error, _NOT_ITS_FAULT) else True
            raise
        except Exception:
            outcome, failed = PalimpsestError.code, True
            raise
        finally:
            self._metrics.requests.labels(choice.lineage, choice.arm, outcome).inc()
            if choice.arm != PINNED and failed is not None:
                self._record(choice.lineage, canary=choice.arm == CANARY, failed=failed)

    def close(self) -> None:
        """Finish what is being fetched."""
        self._fetching.shutdown()
        self._resolving.shutdown()

    def _arrived(self, key: tuple[str, int, bool], done: asyncio.Task[Slot]) -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # it is told to those who wait; perhaps nobody does any more

    def _resolve(self, lineage: str, version: str) -> int:
        if version == LIVE and (number := self._bank.pointers().get(lineage)):
            return number
        try:
            return self._registry.resolve(lineage, version)
        except UnavailableError:
            last = self._seen().get(lineage)
            if version != CANDIDATE or last is None or last.candidate is None:
                raise
            return last.candidate

    async def _canary(self, lineage: str, number: int) -> Slot | None:
        """The canary's version; if it cannot be had, `live` stands in for it."""
        try:
            return await self.fetch(lineage, str(number))
        except PalimpsestError as error:
            if not isinstance(error, _NOT_ITS_FAULT):
                self._record(lineage, canary=True, failed=True)
            return None

    def _record(self, lineage: str, *, canary: bool, failed: bool) -> None:
        number = self._rollout.record(lineage, canary=canary, failed=failed)
        if number is not None:
            log.error("%s@%d fails more often than the live version and is no canary any more", lineage, number)
            self._metrics.canary_returns.inc()
            self._returned()
