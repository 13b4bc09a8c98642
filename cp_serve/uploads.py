"""Multipart forms (RFC 7578), read into memory piece by piece: whatever is too much is refused while it is read.

Nothing touches a disk, so nothing can be left there.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from services.errors import InputError, TooLargeError
from services.images import base_name, too_many_bytes
from services.settings import Settings

_MAX_FIELDS, _MAX_FIELD_BYTES = 16, 4096
_ENVELOPE_BYTES = 2**18
"""What fields, headers and boundaries may take beside the files."""
_BAD_REQUEST, _NOT_MULTIPART = 400, 415


@dataclass(frozen=True)
class Form:
    """Text fields by name, and files as (name, bytes)."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, bytes]] = field(default_factory=list)


async def read_form(request: Request, files: Collection[str], settings: Settings, *, max_files: int) -> Form:
    """Read a request's form.

    Args:
        request: whose body was not read yet.
        files: names of the parts that are files.
        settings: `max_image_bytes` of a file, `max_upload_bytes` of them all.
        max_files: how many there may be.

    Raises:
        TooLargeError: too many files, or too many bytes.
        InputError: a text field is repeated, too long or not UTF-8.
        HTTPException: 415, not a multipart form; 400, a broken one; 408, it comes too slowly.
        ClientDisconnect: the client has gone.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(_NOT_MULTIPART)
    reader = _Reader(frozenset(files), settings, max_files)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks)  # type: ignore[arg-type]
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_upload_bytes + _ENVELOPE_BYTES:  # what is outside of every part counts too
                raise _too_many_bytes(settings)
            parser.write(chunk)
    except FormParserError as error:
        raise HTTPException(_BAD_REQUEST) from error
    if not reader.ended:
        raise HTTPException(_BAD_REQUEST)
    return reader.form


class _Reader:
    """Takes what the parser calls out; raises as soon as something is too much."""

    def __init__(self, files: frozenset[str], settings: Settings, max_files: int) -> None:
        self.form, self.ended = Form(), False
        self._names, self._settings, self._max_files = files, settings, max_files
        self._total = 0
        self._header, self._value, self._disposition = b"", b"", b""
        self._name, self._file, self._data = "", "", bytearray()

    @property
    def callbacks(self) -> dict[str, object]:
        """For the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._header_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._data = b"", bytearray()
        if len(self.form.files) + len(self.form.fields) >= self._max_files + _MAX_FIELDS:
            raise TooLargeError(
                f"There are more than {self._max_files} files and {_MAX_FIELDS} fields.", param="images"
            )

    def _header_begin(self) -> None:
        self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._file = base_name(options.get(b"filename", b"").decode(errors="replace"))
        if self._name in self._names and len(self.form.files) >= self._max_files:
            raise TooLargeError(f"There are more than {self._max_files} files: give fewer.", param=self._name)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if self._name not in self._names:
            if len(self._data) > _MAX_FIELD_BYTES:
                raise InputError(f"A field has more than {_MAX_FIELD_BYTES} bytes.")
            return
        self._total += end - start
        if len(self._data) > self._settings.max_image_bytes:
            raise too_many_bytes(self._file, self._settings)
        if self._total > self._settings.max_upload_bytes:
            raise _too_many_bytes(self._settings)

    def _part_end(self) -> None:
        if self._name in self._names:
            self.form.files.append((self._file, bytes(self._data)))
            return
        if self._name in self.form.fields:
            raise InputError("A field is there twice; send it once.")
        try:
            self.form.fields[self._name] = self._data.decode()
        except UnicodeDecodeError:
            raise InputError("A field is not UTF-8.") from None

    def _end(self) -> None:
        self.ended = True


def _too_many_bytes(settings: Settings) -> TooLargeError:
    limit = settings.max_upload_bytes
    return TooLargeError(
        f"The files have more than {limit} bytes together: send fewer or smaller ones.", param="images"
    )
