"""What every route needs: the house, calls that block, names checked, and requests carried out once."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Header, Path, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from cp_serve.house import House
from cp_serve.idempotency import HEADER, MAX_LENGTH, Answers
from services.errors import InputError, NotFoundError, PalimpsestError, UnavailableError
from services.manifest import NAME
from services.patience import outlast

log = logging.getLogger("palimpsest.http")

_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)
_REGISTRY = ThreadPoolExecutor(8, thread_name_prefix="registry")
_STORE = ThreadPoolExecutor(8, thread_name_prefix="store")
_RELEASES = ThreadPoolExecutor(1, thread_name_prefix="release")
"""For claims to be given up, which may have to wait for the store: its other calls must not wait behind them."""
_MAX_DIGITS = 9
REPLAYED = "Idempotent-Replayed"

Name = Annotated[str, Path(max_length=64)]
"""A path parameter: anything longer is nobody's name."""
Responses = dict[int | str, dict[str, Any]]
"""What FastAPI calls `responses`."""
Key = Annotated[str | None, Header(alias=HEADER, max_length=MAX_LENGTH)]
"""The header with which a request may be sent again and is carried out once."""


def house(request: Request) -> House:
    """The house that the application was built over."""
    found: House = request.app.state.house
    return found


async def registry_call(work: Callable[[], _T]) -> _T:
    """Run a call of the registry or of Ray's job API in a thread of its own kind: it must not hold up pictures."""
    return await asyncio.get_running_loop().run_in_executor(_REGISTRY, work)


async def store_call(work: Callable[[], _T]) -> _T:
    """Run a call of the object store in a thread of its own kind."""
    return await asyncio.get_running_loop().run_in_executor(_STORE, work)


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Await some work, but cancel it as soon as the client has gone. The request's body must have been read.

    Raises:
        ClientDisconnect: nobody waits for the answer.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def once(
    request: Request,
    response: Response,
    key: str | None,
    *,
    person: str,
    asked: str,
    work: Callable[[], Awaitable[_M]],
    kind: type[_M],
    seconds: float = math.inf,
) -> _M:
    """Carry out some work once for an Idempotency-Key: whoever sends the same again gets the same answer.

    Args:
        request, response: of the route.
        key: the header; None if there is none, and then the work is simply done.
        person: who asks; another's equal key is another key.
        asked: what is asked for, as one text.
        work: gives the answer.
        kind: of the answer.
        seconds: for which the answer holds, where that is not for as long as answers are kept.

    Raises:
        InputError: the key was used for another request.
        ConflictError: the same is under way.
    """
    if key is None:
        return await work()
    answers, asked = house(request).answers, f"{request.method} {request.url.path}\n{asked}"
    claim = _STORE.submit(answers.claim, key, asked, person=person)

    def release() -> None:
        _RELEASES.submit(_give_up, answers, key, person, time.monotonic() + house(request).settings.body_seconds)

    try:
        answer = await asyncio.shield(asyncio.wrap_future(claim))
    except asyncio.CancelledError:  # the client has gone; nobody will do what is being claimed
        claim.add_done_callback(lambda done: _unclaim(done, release))
        raise
    if answer is not None:
        response.headers[REPLAYED] = "true"
        return kind.model_validate(answer)
    try:
        done = await work()
    except BaseException:
        release()  # not awaited: this may be a cancellation
        raise
    try:
        told = done.model_dump(mode="json")
        await store_call(lambda: answers.keep(key, asked, told, person=person, seconds=seconds))
    except PalimpsestError as error:  # it is done, so it is answered
        log.warning("an answer was not kept for its Idempotency-Key: %s", error.message)
        release()
    return done


def _unclaim(claim: Future[Any], release: Callable[[], None]) -> None:
    """Take back a claim that was made after its client had gone."""
    if claim.exception() is None and claim.result() is None:
        release()


def _give_up(answers: Answers, key: str, person: str, until: float) -> None:
    """End a claim, once the store answers; later than `until` (time.monotonic()) it may be somebody else's."""
    if (seconds := until - time.monotonic()) > 0:
        with suppress(UnavailableError):  # then it ends by itself
            outlast(lambda: answers.give_up(key, person=person), seconds=seconds, say=log.warning)


@contextmanager
def naming_model() -> Iterator[None]:
    """Say `model` of what was not found: that is what the request calls it."""
    try:
        yield
    except NotFoundError as error:
        raise NotFoundError(error.message, param="model") from error


def split_model(model: str) -> tuple[str, str]:
    """`L@7` -> ("L", "7"); `L` -> ("L", "live"). Raises `InputError` naming `model`."""
    lineage, at, version = model.partition("@")
    number = version.isascii() and version.isdigit() and len(version) <= _MAX_DIGITS
    known = number or version in ("live", "candidate")
    if not NAME.fullmatch(lineage) or (at and not known) or (at and lineage == "base"):
        raise InputError(
            f"model: {model!r} is none; write L, L@7, L@live or L@candidate for a lineage L, or base.", param="model"
        )
    return lineage, version or "live"
