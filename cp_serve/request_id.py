"""`X-Request-Id`: the client's own where it is one, else a new one; the same in the server's log and on the answer.

It is settled twice. Ray Serve's HTTP proxy puts on an answer whatever the client sent, so it is settled around that, by
a middleware that every Ray node's environment names (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, in the Dockerfile and
in `services/local_stack.py`); and in the application, for where there is no such proxy.
"""

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = "X-Request-Id"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestId:
    """Sees to it that a request has an id, for whoever answers it, and that the answer has that one and no other."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(_HEADER, "")
        request_id = given if _ID.fullmatch(given) else f"req-{uuid4().hex}"
        MutableHeaders(scope=scope)[_HEADER] = request_id

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        return await self.app(scope, receive, answered)


def request_id_of(scope: Scope) -> str:
    """The id that a request was given."""
    return Headers(scope=scope)[_HEADER]


def proxy_middlewares() -> list[Middleware]:
    """What Serve's proxy puts around everything of its own."""
    return [Middleware(RequestId)]
