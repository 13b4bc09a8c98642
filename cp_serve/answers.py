"""Every error as an answer in OpenAI's shape."""

import logging
import re
from collections.abc import Mapping
from math import ceil
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from cp_serve.schemas import ErrorBody, ErrorResponse
from services.errors import PalimpsestError, unexpected

log = logging.getLogger("palimpsest.http")

MAX_BODY_BYTES = 64 * 2**10
"""Of a body that is not an upload."""
STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in STATUSES}
_BAD_REQUEST, _NOT_JSON, _INVALID, _GONE = 400, 415, 422, 499
_TRY_AGAIN = {429, 503}
_PLAIN = {
    400: ("bad_request", "The request could not be read; send one JSON object in UTF-8."),
    401: ("unauthorized", "The signature is missing, wrong or too old."),
    404: ("not_found", "There is no such route; /docs lists them."),
    405: ("method_not_allowed", "This route does not take that method; the Allow header lists those it takes."),
    408: ("timeout", "The body did not arrive in time; send it again, faster or smaller."),
    413: ("too_large", f"The body has more than {MAX_BODY_BYTES} bytes."),
    415: ("unsupported_media_type", "Send the body as JSON, with Content-Type: application/json."),
}
_Headers = Mapping[str, str] | None
_FIELD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_RETRY_SECONDS = 5


def body_of(error: Exception) -> ErrorBody:
    """What an answer, or an event of a stream, says of an error; of an unexpected one nothing."""
    said = error if isinstance(error, PalimpsestError) else unexpected()
    return ErrorBody(message=said.message, type=said.type, code=said.code, param=said.param)


def answer(status: int, body: ErrorBody, headers: _Headers = None) -> JSONResponse:
    """An error answer."""
    return JSONResponse(ErrorResponse(error=body).model_dump(), status, headers)


def refuse_plainly(status: int, headers: _Headers = None) -> JSONResponse:
    """The answer of a status that needs no other words than its own."""
    code, message = _PLAIN.get(status, ("http_error", "The request cannot be answered."))
    return _refuse(status, code, message, headers=headers)


def _refuse(
    status: int, code: str, message: str, *, param: str | None = None, headers: _Headers = None
) -> JSONResponse:
    body = ErrorBody(message=message, type="invalid_request_error", code=code, param=param)
    return answer(status, body, headers)


def internal() -> JSONResponse:
    """The answer to a request that met an unexpected error."""
    return answer(500, body_of(Exception()))


async def known(_: Request, error: Exception) -> JSONResponse:
    """One of our own errors."""
    assert isinstance(error, PalimpsestError)
    after = error.retry_after or (_RETRY_SECONDS if error.status in _TRY_AGAIN else None)
    headers = None if after is None else {"Retry-After": str(max(1, ceil(after)))}
    return answer(error.status, body_of(error), headers)


async def invalid(request: Request, error: Exception) -> JSONResponse:
    """Pydantic's first complaint, without the value: a prompt must not end up in somebody's log."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _refuse(_BAD_REQUEST, "invalid_json", "The body is not valid JSON.")
    if isinstance(error.body, bytes) and error.body and "json" not in request.headers.get("content-type", ""):
        return refuse_plainly(_NOT_JSON)
    path = ".".join(str(part) for part in first["loc"][1:])
    param = path if _FIELD.fullmatch(path) else None  # a field that we do not know may be called anything
    return _refuse(_INVALID, "invalid_value", f"{param or 'body'}: {first['msg']}.", param=param)


async def plain(_: Request, error: Exception) -> JSONResponse:
    """What the framework refused."""
    assert isinstance(error, HTTPException)
    return refuse_plainly(error.status_code, error.headers)


async def nobody(_request: Request, _error: Exception) -> Response:
    """The client has gone; nobody reads this."""
    return Response(status_code=_GONE)
