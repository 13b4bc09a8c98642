"""The denoiser's replicas, through Serve's handle: the only file that knows what Ray Serve does when one dies.

What is asked of a replica is a pure function of the request (its seeds are fixed at the ingress), so a request whose
replica died is simply asked of another one, until its deadline. So is one that a replica has no room or no time for,
once of each of the others: it is refused, before any work, when all of them have refused it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError

from cp_serve.overload import Overload, Refusal
from cp_serve.requests import Classified, ClassifyRequest, Drawn, DrawRequest, Progress, ReplicaDiedError, Route
from cp_serve.traffic import Traffic
from services.errors import BusyError, DeadlineError, PalimpsestError, QuotaError, UnavailableError, unexpected
from services.telemetry import carried

log = logging.getLogger("palimpsest.http")

_DEAD = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    ObjectLostError,  # an answer that was on the node that died
    ReplicaUnavailableError,
    ReplicaDiedError,
)
_PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each repetition; Serve itself waits for the replica that takes the place of the last one."""
_GRACE = 1.0
"""Seconds past its deadline after which a request is given up on, whatever became of its replica; and seconds in which
what is ready comes, however late somebody asks for it."""
_RETRY_SECONDS = 5
_SLACK = 5.0
"""Seconds after another replica's answer after which one that says nothing is taken for one that hangs."""
_HINT_PATIENCE = 10.0

_Request = TypeVar("_Request", DrawRequest, ClassifyRequest)


class Replicas:
    """All replicas of the denoiser.

    Every method raises what a replica answers with, of several refusals the one that says to come again soonest,
    BusyError when Serve has no room either, and UnavailableError when replica after replica died.

    Args:
        handle: Serve's handle of the deployment.
        traffic: counts what had to be repeated.
        deadline_seconds: that a request may take at most.
    """

    def __init__(self, handle: Any, traffic: Traffic, *, deadline_seconds: float) -> None:
        self._handle, self._traffic, self._deadline = handle, traffic, deadline_seconds
        self._overload = Overload()
        self._hints: set[asyncio.Task[list[Any]]] = set()  # asyncio itself keeps no task alive
        self._seconds: float = _RETRY_SECONDS  # that the last answered request took, its wait in all queues included

    async def draw(self, request: DrawRequest) -> Drawn:
        """See `Denoiser.draw`. Cancelling it frees the request's places."""
        return cast(Drawn, await self._answered(self._handle.draw, request))

    async def classify(self, request: ClassifyRequest) -> Classified:
        """See `Denoiser.classify`."""
        return cast(Classified, await self._answered(self._handle.classify, request))

    async def status(self, *, patience: float) -> dict[str, object]:
        """See `Denoiser.status`, of any replica. Raises UnavailableError if none answers within `patience` seconds."""
        try:
            status: dict[str, object] = await self._ask(
                self._handle.status.remote, time.monotonic() + patience - _GRACE
            )
        except DeadlineError:
            raise UnavailableError("No denoiser is ready yet.", retry_after=patience) from None
        return status

    async def everywhere(self, method: str, *arguments: object, patience: float) -> list[Any]:
        """Call a method of every replica: what those answer that live, and do not hang.

        Raises:
            UnavailableError: none does.
            PalimpsestError: what one of them answered, or an unexpected one.
        """
        due = time.monotonic() + patience
        try:
            with self._errors():
                async with asyncio.timeout(patience):
                    calls = await self._calls(method, *arguments)
                answers, silent = await _answers(calls, due)
        except TimeoutError:
            raise _none_left() from None
        self._traffic.silent.set(silent)
        if not answers:
            raise _none_left()
        return [_expected(answer) for answer in answers]

    def hint(self) -> None:
        """Tell every replica to look at the registry now, and wait for none: polling finds the same, a little later."""
        told = asyncio.ensure_future(self.everywhere("hint", patience=_HINT_PATIENCE))
        self._hints.add(told)
        told.add_done_callback(self._hinted)

    def _hinted(self, told: "asyncio.Task[list[Any]]") -> None:
        self._hints.discard(told)
        if not told.cancelled() and (error := told.exception()):
            log.info("the replicas were not told to look at the registry: %s", error)

    async def _calls(self, method: str, *arguments: object) -> list[Any]:
        """One call for each replica. What Serve offers waits for all of them, and tells nothing if one is silent."""
        calls: list[Any] = await self._handle.broadcast(method, *arguments)._fetch_replica_results_async()
        return calls

    async def stream(self, request: DrawRequest) -> AsyncGenerator[Progress | Drawn, None]:
        """See `Denoiser.stream`. After a replica died it goes on where it was, with the version that it began with,
        wherever `live` is now; closing it frees the places.
        """
        due, pauses, seen = self._due(request), iter(_PAUSES), set[tuple[object, ...]]()
        request, refusals = _begun(request), list[Refusal]()
        while True:
            try:
                async with aclosing(self._stream_once(_shortened(request, due), due)) as items:
                    async for item in items:
                        request = _pinned(request, item.model)
                        mark = (item.step, item.image, item.index) if isinstance(item, Progress) else ()
                        if mark not in seen:
                            yield item
                        seen.add(mark)
            except _DEAD as error:
                await self._rest(pauses, error)
            except (BusyError, QuotaError) as refusal:
                refusals.append(refusal)
                self._take_onward(request, refusals)
            else:
                return

    async def _stream_once(self, request: DrawRequest, due: float) -> AsyncGenerator[Progress | Drawn, None]:
        call = self._handle.options(stream=True).stream.remote(request)
        try:
            with self._timed(), self._errors():
                while (item := await _within(due, anext(call, None))) is not None:
                    yield _value(item)
        finally:
            call.cancel()

    async def _answered(self, method: Any, request: _Request) -> Any:
        """The answer of one replica, or of another where the first has no room or no time."""
        due, request, refusals = self._due(request), _begun(request), list[Refusal]()
        while True:
            try:
                with self._timed():
                    return await self._ask(lambda: method.remote(_shortened(request, due)), due)
            except (BusyError, QuotaError) as refusal:
                refusals.append(refusal)
                self._take_onward(request, refusals)

    def _take_onward(self, request: _Request, refusals: Sequence[Refusal]) -> None:
        """Return if another replica is to be asked, else raise what is to be told of those that refused."""
        route = request.route
        if not route.others:
            self._overload.note(request, refusals)
        elif len(refusals) <= len(route.asked) and not self._overload.stands_for_all(request, refusals[-1]):
            return  # more refusals than replicas that were asked: that was Serve itself, and would be again
        raise min(refusals, key=lambda refusal: refusal.retry_after or 0.0)

    async def _ask(self, ask: Callable[[], Any], due: float) -> Any:
        """One replica's answer; another one's if it died. Cancelled if nobody waits any more."""
        pauses = iter(_PAUSES)
        while True:
            call = ask()
            try:
                with self._errors():
                    return _value(await _within(due, call))
            except _DEAD as error:
                await self._rest(pauses, error)
            except (asyncio.CancelledError, DeadlineError):  # nobody waits any more, wherever it is queued
                call.cancel()
                raise

    async def _rest(self, pauses: Iterator[float], error: Exception) -> None:
        """Wait before the next try; if there is none, say so."""
        if (pause := next(pauses, None)) is None:
            raise _none_left() from error
        self._traffic.retries.inc()
        await asyncio.sleep(pause)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Remember what an answered request took."""
        start = time.monotonic()
        yield
        self._seconds = time.monotonic() - start

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Map Ray's errors to ours, but for those of a dead replica. An unexpected one of the denoiser's passes.

        Where Serve itself has no room, there is some when a request that came just now is answered.
        """
        try:
            yield
        except BackPressureError as error:
            raise BusyError("Too many requests are waiting; try again later.", retry_after=self._seconds) from error
        except (RayTaskError, *_DEAD):
            raise
        except (RayError, RayServeException) as error:
            raise _none_left() from error

    def _due(self, request: DrawRequest | ClassifyRequest) -> float:
        """When the request is due, in time.monotonic()."""
        return time.monotonic() + min(request.deadline_seconds or self._deadline, self._deadline)


def _begun(request: _Request) -> _Request:
    """The request, sent nowhere yet."""
    return replace(request, route=Route())


def _shortened(request: _Request, due: float) -> _Request:
    """The request with what is left of its time, and with what log lines and spans about it need."""
    return replace(request, deadline_seconds=max(0.001, due - time.monotonic()), carried=carried())


def _pinned(request: DrawRequest, model: str) -> DrawRequest:
    """The request for just the version that draws it, `L@number`."""
    number = model.partition("@")[2]
    return replace(request, version=number) if number else request


async def _answers(calls: Sequence[Any], due: float) -> tuple[list[Any], int]:
    """What replicas that live answer until `due` or soon after the first of them, and how many say nothing."""
    waiting = {asyncio.ensure_future(call.get_async()) for call in calls}
    answers: list[Any] = []
    try:
        while waiting and (left := due - time.monotonic()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            found = await asyncio.gather(*done, return_exceptions=True)
            answers += [answer for answer in found if not isinstance(answer, (*_DEAD, asyncio.CancelledError))]
            if answers:
                due = min(due, time.monotonic() + _SLACK)
    finally:
        for call in waiting:
            call.cancel()
    return answers, len(waiting)


async def _within(due: float, call: Any) -> Any:
    try:
        async with asyncio.timeout(max(0.0, due - time.monotonic()) + _GRACE):
            return await call
    except TimeoutError:
        raise DeadlineError("The pictures were not done within the deadline; ask for fewer images or steps.") from None


def _value(answer: Any) -> Any:
    """An answer; our own errors are values, since Ray logs what a replica raises, trace, text and all."""
    if isinstance(answer, PalimpsestError):
        raise answer
    return answer


def _expected(answer: Any) -> Any:
    """An answer; an error that nobody foresaw must not pass for a replica that died."""
    if isinstance(answer, Exception) and not isinstance(answer, PalimpsestError):
        raise unexpected() from answer
    return _value(answer)


def _none_left() -> UnavailableError:
    return UnavailableError("The denoiser is restarting; try again.", retry_after=_RETRY_SECONDS)
