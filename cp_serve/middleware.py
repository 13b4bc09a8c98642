"""What every request passes through: a line in the log, a span, counters, and limits of its body."""

import asyncio
import logging
import re
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cp_serve.answers import MAX_BODY_BYTES, internal, refuse_plainly
from cp_serve.request_id import request_id_of
from cp_serve.traffic import Traffic
from services.telemetry import Carried, continuing, span, where

log = logging.getLogger("palimpsest.http")

UPLOADS = re.compile(r"/v1/lineages/[^/]*/(?:concepts|classify)")
"""Paths whose body may be large; `uploads.py` limits it."""
_TOO_LARGE, _TIMEOUT = 413, 408
_QUIET = {"/healthz", "/readyz", "/metrics"}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class RequestScope:
    """Sees to it that whatever happens to a request is answered, counted and logged under its id.

    Args:
        app: what answers.
        traffic: counts.
    """

    def __init__(self, app: ASGIApp, *, traffic: Traffic) -> None:
        self.app, self.traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id, traceparent = request_id_of(scope), Headers(scope=scope).get("traceparent", "")
        started, status = time.monotonic(), 0

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with continuing(Carried(request_id, traceparent)):
            try:
                with span("http.request", request_id=request_id) as attributes:
                    try:
                        await self.app(scope, receive, answered)
                    except Exception as error:  # the border: nothing of it may reach the client or the server's own log
                        log.error("unexpected %s", where(error))
                        if not status:
                            await internal()(scope, receive, answered)
                    finally:
                        attributes |= {"http.route": _route(scope), "http.status_code": status}
            finally:
                self._report(scope, status, time.monotonic() - started)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = scope["method"] if scope["method"] in _METHODS else "other", _route(scope)
        self.traffic.count(method, route, status, seconds)
        fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        level = logging.DEBUG if route in _QUIET else logging.INFO
        log.log(level, "%(method)s %(route)s %(status)s %(seconds)s s", fields, extra={"fields": fields})


def _route(scope: Scope) -> str:
    """The template of the path: what is in a path itself is nobody's business."""
    return str(getattr(scope.get("route"), "path", "none"))


class BodyLimit:
    """Reads no more of a body than the limit, and waits no longer for it. (Starlette's own answers in plain text.)

    Args:
        app: what answers.
        seconds: a client may take to send its body.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with a `receive` that counts."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = float("inf") if UPLOADS.fullmatch(scope["path"]) else MAX_BODY_BYTES
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:  # noqa: PLR2004
            return await refuse_plainly(_TOO_LARGE)(scope, receive, send)
        size, complete, until = 0, False, time.monotonic() + self.seconds

        async def counted() -> Message:
            nonlocal size, complete
            if complete:  # what comes now is that the client has gone, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                raise HTTPException(_TIMEOUT, headers={"Connection": "close"}) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > limit:
                raise HTTPException(_TOO_LARGE)
            return message

        return await self.app(scope, counted, send)
