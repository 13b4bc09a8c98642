"""Logs as text and JSON, and traces that a real OTLP/HTTP receiver gets."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.errors import InputError
from services.telemetry import (
    REQUEST_ID,
    Carried,
    JsonLines,
    carried,
    configure_logging,
    configure_traces,
    continuing,
    span,
    where,
)

SCRIPT = """
import sys
from services.telemetry import Carried, carried, configure_traces, continuing, span
configure_traces(sys.argv[1], "palimpsest")
client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
with continuing(Carried("id-1", client)), span("draw", steps=3) as attributes:
    attributes["model"] = "pets@2"
    elsewhere = carried()
    assert elsewhere.request_id == "id-1"
assert carried() == Carried()
try:
    with continuing(elsewhere), span("replica"):
        raise ValueError("a secret prompt")
except ValueError:
    pass
with continuing(Carried("id-2", "nonsense")), span("alone"):
    pass
from opentelemetry import trace
trace.get_tracer_provider().shutdown()
"""


def test_a_json_line_has_the_requests_id_and_the_records_fields() -> None:
    record = logging.LogRecord("palimpsest.x", logging.INFO, "x.py", 1, "%d ü\n", (3,), None)
    record.fields = {"seconds": 0.5}
    token = REQUEST_ID.set("id-1")
    try:
        text = JsonLines().format(record)
    finally:
        REQUEST_ID.reset(token)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "palimpsest.x",
        "message": "3 ü\n",
        "request_id": "id-1",
        "seconds": 0.5,
    }
    assert "request_id" not in json.loads(JsonLines().format(record))


def test_a_line_goes_to_what_stderr_is_when_it_comes_with_the_requests_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    log = logging.getLogger("palimpsest.telemetry")
    log.info("one")
    assert capsys.readouterr().err.endswith(" INFO palimpsest.telemetry one\n")
    with continuing(Carried("id-1")):
        log.info("its own")
    assert capsys.readouterr().err.endswith(" INFO palimpsest.telemetry its own [id-1]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", sys.stdout)
        log.info("two")
    assert capsys.readouterr().out.endswith(" two\n")


def test_an_unexpected_error_says_where_and_not_what() -> None:
    with pytest.raises(ValueError, match="invalid literal") as error:
        int("a secret")
    assert where(error.value).startswith("ValueError at test_telemetry.py:")
    assert "secret" not in where(error.value)
    assert where(ValueError("a secret")) == "ValueError"


def test_without_traces_a_span_is_nothing() -> None:
    configure_traces("", "palimpsest")
    with span("draw", steps=1) as attributes:
        attributes["model"] = "pets@2"


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"install `palimpsest\[traces\]`"):
        configure_traces("http://127.0.0.1:1/v1/traces", "palimpsest")


class Receiver(HTTPServer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Keep)


class Keep(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_spans_reach_the_receiver(receiver: Receiver) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/v1/traces"
    subprocess.run([sys.executable, "-c", SCRIPT, url], check=True)
    request = ExportTraceServiceRequest()
    request.MergeFromString(_plain(receiver.got[0]))
    (resource,) = request.resource_spans
    assert {"service.name": "palimpsest"}.items() <= {
        a.key: a.value.string_value for a in resource.resource.attributes
    }.items()
    replica, found, alone = sorted(resource.scope_spans[0].spans, key=lambda one: "rda".index(one.name[0]))
    assert found.name == "draw"
    assert {a.key: a.value.string_value or a.value.int_value for a in found.attributes} == {
        "steps": 3,
        "model": "pets@2",
    }
    assert found.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c", "the client's trace goes on"
    assert (replica.trace_id, replica.parent_span_id) == (found.trace_id, found.span_id), "and so does ours, elsewhere"
    assert alone.trace_id != found.trace_id
    assert (replica.status.code, replica.status.message) == (2, "ValueError")
    assert not replica.events
    assert b"secret" not in replica.SerializeToString()


def test_what_is_carried_reaches_the_log_of_another_process() -> None:
    record = logging.LogRecord("palimpsest.x", logging.INFO, "x.py", 1, "drawn", (), None)
    with continuing(Carried("id-1")):
        assert carried() == Carried("id-1")
        with continuing(Carried("id-2")):
            assert json.loads(JsonLines().format(record))["request_id"] == "id-2"
        assert json.loads(JsonLines().format(record))["request_id"] == "id-1"
    assert carried() == Carried()


def _plain(body: bytes) -> bytes:
    import gzip

    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
