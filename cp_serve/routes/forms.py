"""Multipart bodies of the routes that take pictures: how they are documented, read and checked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from cp_serve.house import House
from services.errors import BusyError

_M = TypeVar("_M", bound=BaseModel)
_RETRY_SECONDS = 5


def form_schema(fields: type[BaseModel], files: str, *, many: bool) -> dict[str, Any]:
    """The OpenAPI description of a form of some text fields and a part of files."""
    file = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
    part = {"type": "array", "items": file, "minItems": 1} if many else file
    schema = fields.model_json_schema()
    schema["properties"] = {files: part} | schema["properties"]
    schema["required"] = [files, *schema.get("required", [])]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def parse_fields(kind: type[_M], fields: dict[str, str]) -> _M:
    """The text fields of a form. Raises what FastAPI raises for a body that it refuses."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        complaints = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(complaints) from None


@asynccontextmanager
async def uploading(home: House) -> AsyncIterator[None]:
    """Room for one upload.

    Raises:
        BusyError: there is none now.
    """
    if home.uploads.locked():
        raise BusyError("Other uploads are being read; try again later.", retry_after=_RETRY_SECONDS)
    async with home.uploads:
        yield
