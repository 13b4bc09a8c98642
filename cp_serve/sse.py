"""Server-sent events (WHATWG HTML, section 9.2): their spelling, and an answer that streams them.

The answer watches the connection: once the client has gone, whatever makes the events is closed at once.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cp_serve.answers import body_of
from services.errors import PalimpsestError
from services.telemetry import where

log = logging.getLogger("palimpsest.http")

MEDIA_TYPE = "text/event-stream"
_QUIET_SECONDS = 15.0
"""After so much silence a comment is sent, so that no proxy takes the connection for dead."""
_COMMENT = b": \n\n"


def event(name: str, data: object) -> bytes:
    """One event; `data` is anything that JSON knows."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventStream(Response):
    """A 200 that sends events as they come, and an `error` event, with OpenAI's error in it, if they break off.

    Args:
        events: of `event`; closed when the client has gone.
        headers: more of them.
    """

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until nobody listens."""
        pump, gone = asyncio.create_task(self._pump(send)), asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone):
                task.cancel()
            await asyncio.gather(pump, gone, return_exceptions=True)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in _unsilenced(self._events):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:  # the border: the status is out, so this is where it can still be said
            if not isinstance(error, PalimpsestError):
                log.error("a stream broke off: unexpected %s", where(error))
            broken = event("error", {"error": body_of(error).model_dump()})
            await send({"type": "http.response.body", "body": broken, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _unsilenced(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The events, with a comment wherever there would be a long silence."""
    while True:
        following = asyncio.ensure_future(anext(events, b""))
        try:
            while not (await asyncio.wait({following}, timeout=_QUIET_SECONDS))[0]:
                yield _COMMENT
            if not (chunk := following.result()):
                return
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        yield chunk


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
