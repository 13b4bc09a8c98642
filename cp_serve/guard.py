"""Who asks, and whether they may: before anything of a request's body is read, and once more in the route.

With `PALIMPSEST_AUTH=tokens` every request but those of `_OPEN` needs `Authorization: Bearer <token>`. A route then
asks `permit` for its lineage. Who may not even know of a lineage is answered as if there were none.
"""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import cast

from fastapi import Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cp_serve.answers import answer, body_of
from cp_serve.house import House
from services.auth import ANYBODY, Person, Right
from services.catalogue import no_lineage
from services.errors import ForbiddenError, PalimpsestError, UnauthorizedError

_OPEN = re.compile(
    r"/|/docs|/openapi\.json|/healthz|/readyz|/static-offline-docs/.*|/v1/hooks/mlflow|/v1/pictures/[^/]*"
)
"""Paths that say nothing of anybody, or whose requests are signed."""
_DOOR = ThreadPoolExecutor(32, thread_name_prefix="door")
"""Threads of their own: where the store hangs, its other calls must not hold up whom the door knows."""
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
SCHEME = HTTPBearer(auto_error=False, description="A token of `palimpsest invite`; where there is authentication.")
"""For the OpenAPI document; `Guard` is who looks."""


class Guard:
    """Lets requests in that say whose they are.

    Args:
        app: what answers.
        house: whose door it is.
    """

    def __init__(self, app: ASGIApp, *, house: House) -> None:
        self.app, self.house = app, house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or self.house.settings.auth == "off":
            return await self.app(scope, receive, send)
        try:
            person = await self._person(Headers(scope=scope).get("authorization", ""))
        except PalimpsestError as error:
            if not _OPEN.fullmatch(scope["path"]):
                return await _refusal(error)(scope, receive, send)
            person = Person("")
        scope.setdefault("state", {})["person"] = person
        return await self.app(scope, receive, send)

    async def _person(self, header: str) -> Person:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthorizedError(
                "Say who you are: `Authorization: Bearer <token>`; the command takes PALIMPSEST_TOKEN."
            )
        admit = partial(self.house.door.admit, token.strip())
        return await asyncio.get_running_loop().run_in_executor(_DOOR, admit)


def _refusal(error: PalimpsestError) -> ASGIApp:
    headers = _CHALLENGE if error.status == HTTPStatus.UNAUTHORIZED else {"Retry-After": "5"}
    return answer(error.status, body_of(error), headers)


def person_of(request: Request) -> Person:
    """Who asks; anybody where there is no authentication."""
    return cast(Person, getattr(request.state, "person", ANYBODY))


def permit(request: Request, lineage: str, right: Right = "generate") -> Person:
    """Who asks, if they may do that with a lineage.

    Raises:
        NotFoundError: they may do nothing with it; the words are those of a lineage that is not there.
        ForbiddenError: they may draw with it, but not that.
    """
    person = person_of(request)
    held = person.right(lineage)
    if held is None:
        raise no_lineage(lineage)
    if right == "owner" and held != "owner":
        raise ForbiddenError(f"Only an owner of `{lineage}` may do that.", param="lineage")
    return person


def permit_watching(request: Request) -> None:
    """Whoever looks at figures must have a role for it.

    Raises:
        ForbiddenError: they have not.
    """
    if not person_of(request).watches:
        raise ForbiddenError("Everybody's figures are for administrators and PALIMPSEST_WATCH_TOKEN.")
