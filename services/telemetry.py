"""Logs and traces, without prompts, pictures or secrets.

A log line is one event on stderr, as text or as a JSON object, with the id of the HTTP request that it belongs to.
Traces are OpenTelemetry's, off by default, and need the extra `traces`. Another process that works for the same request
takes both over with what `carried` gives (W3C Trace Context). A span that breaks off says the kind of error, as a log
line does, and never its text.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from services.errors import InputError, PalimpsestError

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the HTTP request that is being answered; empty outside one."""

_FRAMES = 3


def configure_logging(style: str = "text", level: int = logging.INFO) -> None:
    """Send this project's log lines to stderr, as `text` or `json`. Calling it again changes nothing."""
    logger = logging.getLogger("palimpsest")
    if any(isinstance(handler, _Stderr) for handler in logger.handlers):
        return
    handler = _Stderr()
    handler.setFormatter(JsonLines() if style == "json" else PlainLines())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a line comes: Ray replaces it in its workers."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Where lines go."""
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        raise AttributeError("this handler always writes to sys.stderr")


class PlainLines(logging.Formatter):
    """A log record as one line of text, with the id of the request that it belongs to, if there is one, at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line."""
        line, request_id = super().formatMessage(record), REQUEST_ID.get()
        return f"{line} [{request_id}]" if request_id else line


class JsonLines(logging.Formatter):
    """A log record as one JSON object: time, level, logger, message, request_id, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        return json.dumps(line | getattr(record, "fields", {}))


def where(error: BaseException) -> str:
    """What a log may say of an unexpected error: its kind and the last places it came from, never its text."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}" if places else type(error).__name__


def gist(error: BaseException) -> str:
    """What a line of a log may say of an error: ours are written for people, of others it says the kind."""
    return error.message if isinstance(error, PalimpsestError) else type(error).__name__


def configure_traces(endpoint: str, service: str) -> None:
    """Send this process's traces to an OTLP/HTTP endpoint such as `http://host:4318/v1/traces`; empty: none.

    Raises:
        InputError: the packages for it are not installed.
    """
    if not endpoint:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InputError(
            "PALIMPSEST_TRACES is set, but the packages for traces are missing; install `palimpsest[traces]`.",
            param="traces",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    Tracing.tracer = provider.get_tracer(service)


class Tracing:
    """What makes this process's spans; where there is nothing, no span costs anything."""

    tracer: Any = None


@dataclass(frozen=True)
class Carried:
    """Whose request this is: its id, and the `traceparent` of its present span where there are traces."""

    request_id: str = ""
    traceparent: str = ""


def carried() -> Carried:
    """What another process needs for its lines and spans to belong to the request that is being answered."""
    carrier: dict[str, str] = {}
    if Tracing.tracer:
        _trace_context().inject(carrier)
    return Carried(REQUEST_ID.get(), carrier.get("traceparent", ""))


@contextmanager
def continuing(request: Carried) -> Iterator[None]:
    """Lines and spans of the body belong to a request that was begun elsewhere."""
    token = REQUEST_ID.set(request.request_id)
    try:
        if not (Tracing.tracer and request.traceparent):
            yield
            return
        from opentelemetry import context

        attached = context.attach(_trace_context().extract({"traceparent": request.traceparent}))
        try:
            yield
        finally:
            context.detach(attached)
    finally:
        REQUEST_ID.reset(token)


def _trace_context() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


@contextmanager
def span(name: str, **attributes: str | float) -> Iterator[dict[str, str | float]]:
    """A span of the trace; what is put into the dictionary until its end becomes attributes. Free without traces."""
    if not Tracing.tracer:
        yield {}
        return
    from opentelemetry import trace

    later = dict[str, str | float]()
    with Tracing.tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield later
        except BaseException as error:
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            current.set_attributes(later)
