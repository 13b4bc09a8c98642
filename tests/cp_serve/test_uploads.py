"""Forms read from real requests, whole and cut: what is too much is refused while it is read."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cp_serve.uploads import Form, read_form
from services.errors import InputError, TooLargeError
from services.settings import Settings

LIMITS = Settings(max_image_bytes=1000, max_upload_bytes=2500)
TYPE = "multipart/form-data; boundary=xyz"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    name = f'name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--xyz\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


def read(data: bytes, *, kind: str = TYPE, size: int = 7, max_files: int = 3) -> tuple[Form, int]:
    """What comes of a body that arrives in pieces, and how much of it was read."""
    taken = 0

    def pieces() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for start in range(0, max(1, len(data)), size):
            taken = start + size
            yield {"type": "http.request", "body": data[start : start + size], "more_body": taken < len(data)}
        yield {"type": "http.disconnect"}

    source = pieces()

    async def receive() -> dict[str, Any]:
        return next(source)

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}, receive)
    return asyncio.run(read_form(request, {"images"}, LIMITS, max_files=max_files)), taken


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_fields_and_files_however_they_are_cut(size: int) -> None:
    data = body(
        part("name", "mug ü".encode()),
        part("images", b"\r\n--xy\x00\xff", "C:\\dir\\..\\a.png"),
        part("images", b"", ""),
        part("noun", b""),
    )
    form, _ = read(data, size=size)
    assert form.fields == {"name": "mug ü", "noun": ""}
    assert form.files == [("a.png", b"\r\n--xy\x00\xff"), ("image", b"")]


def test_what_is_too_much_is_not_read_to_its_end() -> None:
    huge = part("images", b"x" * 100_000, "a.png")
    for data, message in (
        (body(huge), "'a.png' is larger than 1000 bytes"),
        (body(*[part("images", b"x" * 900, "a.png")] * 40), "more than 2500 bytes together"),
        (body(*[part("images", b"x", "a.png")] * 4000), "more than 3 files"),
        (body(part("name", b"x" * 100_000)), "more than 4096 bytes"),
        (body(*[part(f"f{n}", b"x") for n in range(4000)]), "more than 3 files and 16 fields"),
    ):
        with pytest.raises((TooLargeError, InputError), match=message):
            read(data)


def test_reading_stops_where_it_is_too_much() -> None:
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 100
        start = part("images", b"", "a.png") if taken == 100 else b""
        return {"type": "http.request", "body": start[:-2] + b"x" * 100, "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", TYPE.encode())]}, receive)
    with pytest.raises(TooLargeError):
        asyncio.run(read_form(request, {"images"}, LIMITS, max_files=3))
    assert taken <= 1300


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (body(), "multipart/form-data", 415),
        (body(), "", 415),
        (b"", TYPE, 400),
        (b"--xyz\r\n", TYPE, 400),
        (part("images", b"cut off", "a.png"), TYPE, 400),
        (b"nonsense" * 10, TYPE, 400),
        (body(part("a", b"x")), f"multipart/form-data; boundary={'x' * 1000}", 400),
    ],
)
def test_what_is_no_form_is_refused(data: bytes, kind: str, status: int) -> None:
    with pytest.raises(HTTPException) as error:
        read(data, kind=kind)
    assert error.value.status_code == status


def test_a_field_is_there_once_and_in_utf8() -> None:
    with pytest.raises(InputError, match="twice"):
        read(body(part("name", b"a"), part("name", b"b")))
    with pytest.raises(InputError, match="UTF-8"):
        read(body(part("name", b"\xff")))


def test_a_client_that_goes_is_noticed() -> None:
    messages = iter(
        [{"type": "http.request", "body": part("name", b"a"), "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", TYPE.encode())]}, receive)
    with pytest.raises(ClientDisconnect):
        asyncio.run(read_form(request, {"images"}, LIMITS, max_files=3))


@settings(
    max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_break_the_reader(noise: bytes, size: int) -> None:
    for data in (noise, b"--xyz\r\n" + noise, body(part("images", noise, "a.png"))):
        try:
            form, _ = read(data, size=size)
        except (HTTPException, InputError):
            continue
        assert all(re.fullmatch(r"[^\n\r]*", name) for name, _ in form.files)
