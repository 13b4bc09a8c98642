"""The HTTP application over a house: routes, what every request passes through, and every error in OpenAI's shape."""

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cp_serve import answers
from cp_serve.answers import ERRORS, MAX_BODY_BYTES
from cp_serve.guard import SCHEME, Guard
from cp_serve.house import House
from cp_serve.middleware import BodyLimit, RequestScope
from cp_serve.request_id import RequestId
from cp_serve.routes import classify, concepts, health, hooks, images, jobs, lineages, models, pages
from services.errors import PalimpsestError

__all__ = ["ERRORS", "MAX_BODY_BYTES", "House", "build_app"]

_ROUTES = (images, models, lineages, concepts, classify, jobs, hooks, health, pages)


def build_app(house: House) -> FastAPI:
    """The application over what its routes work with."""
    # A redirect for a slash at the end would lead to whatever the Host header says.
    # Its documentation page asks no third party for its scripts.
    app = FastAPIOffline(
        title="Palimpsest",
        version="1",
        redoc_url=None,
        responses=ERRORS,
        redirect_slashes=False,
        dependencies=[Security(SCHEME)],
    )
    app.state.house = house
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_middleware(BodyLimit, seconds=house.settings.body_seconds)
    app.add_middleware(Guard, house=house)
    app.add_middleware(RequestScope, traffic=house.traffic)
    app.add_middleware(RequestId)
    app.add_exception_handler(PalimpsestError, answers.known)
    app.add_exception_handler(RequestValidationError, answers.invalid)
    app.add_exception_handler(HTTPException, answers.plain)
    app.add_exception_handler(ClientDisconnect, answers.nobody)
    return app
