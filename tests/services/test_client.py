"""What the Python client makes of answers that are not the API's, over real HTTP; its own answers: `tests/e2e`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from services import client
from services.client import Client
from services.errors import PalimpsestError, UnavailableError
from tests.ports import free_ports


@contextmanager
def server(status: int, body: bytes, *, silent: bool = False) -> Iterator[str]:
    """URL of a server that gives one answer, or none."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if silent:
                over.wait()
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}"
        finally:
            over.set()
            served.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[]"), (404, b"[]"), (404, b'{"detail": "?"}'), (404, b'{"error": "?"}')],
)
def test_another_program_at_the_port_is_said_to_be_one(status: int, body: bytes) -> None:
    with server(status, body) as url, pytest.raises(UnavailableError) as refused:
        Client(url).ready()
    assert refused.value.message.startswith(f"{url} is not Palimpsest's API; check PALIMPSEST_HTTP_PORT and ")


def test_a_proxy_with_nobody_behind_it() -> None:
    with (
        server(502, b"Bad Gateway") as url,
        pytest.raises(UnavailableError, match=r"no answer \(502\); `palimpsest stat"),
    ):
        Client(url).ready()


def test_the_servers_error_is_told_with_its_field() -> None:
    body = b'{"error": {"message": "There is no lineage.", "param": "lineage"}}'
    with server(404, body) as url, pytest.raises(PalimpsestError) as refused:
        Client(url).lineage("mugs")
    assert (refused.value.message, refused.value.param) == ("There is no lineage.", "lineage")


def test_nobody_at_the_port() -> None:
    with pytest.raises(UnavailableError, match="does not answer; `palimpsest up` starts one"):
        Client(f"http://127.0.0.1:{free_ports(1)[0]}").ready()


def test_a_busy_server_is_not_told_to_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_READ", 0.2)
    with server(200, b"{}", silent=True) as url, pytest.raises(UnavailableError, match=r"busy, try again later"):
        Client(url).ready()
