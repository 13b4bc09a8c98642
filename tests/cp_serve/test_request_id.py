"""`X-Request-Id` behind Serve's proxy, whose own idea of it is put on every answer."""

import logging
import re
from pathlib import Path

import pytest
from ray.serve._private import http_util
from ray.serve.config import HTTPOptions
from starlette.testclient import TestClient

from services.local_stack import ray_environment
from services.settings import Settings
from services.telemetry import PlainLines
from tests.cp_serve.conftest import Serving

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
DOCKERFILE = (Path(__file__).parents[2] / "infra" / "docker" / "Dockerfile").read_text()
MADE = re.compile("req-[0-9a-f]{32}")


@pytest.fixture
def behind_the_proxy(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The application with everything around it that Serve's proxy puts there in a Ray head's environment."""
    monkeypatch.setattr(http_util, VARIABLE, ray_environment(Settings())[VARIABLE])
    middlewares = http_util.configure_http_middlewares(HTTPOptions()).middlewares
    return TestClient(http_util._apply_middlewares(serving.app, middlewares))


def ids(client: TestClient, given: bytes | None) -> list[str]:
    headers = {} if given is None else {b"X-Request-Id": given}
    return client.get("/v1/models/nobody", headers=headers).headers.get_list("X-Request-Id")


@pytest.mark.parametrize("given", [None, b"", b"a b", b"x" * 129, "é".encode(), "é".encode("latin-1")])
def test_what_is_no_id_is_replaced(behind_the_proxy: TestClient, serving: Serving, given: bytes | None) -> None:
    for client in (behind_the_proxy, serving.client):
        (answered,) = ids(client, given)
        assert MADE.fullmatch(answered)


def test_an_id_is_taken(behind_the_proxy: TestClient, serving: Serving) -> None:
    for client in (behind_the_proxy, serving.client):
        assert ids(client, b"my-id:1._") == ["my-id:1._"]


def test_it_is_the_one_in_the_log(behind_the_proxy: TestClient) -> None:
    lines: list[str] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Capture()
    handler.setFormatter(PlainLines())
    logger = logging.getLogger("palimpsest")
    logger.addHandler(handler)
    try:
        answered = [*ids(behind_the_proxy, b"x" * 129), *ids(behind_the_proxy, b"id-8")]
    finally:
        logger.removeHandler(handler)
    told = [line.rpartition(" ")[2] for line in lines if "/v1/models/{model}" in line]
    assert told == [f"[{one}]" for one in answered]


def test_the_image_tells_serve_of_it_as_the_local_stack_does() -> None:
    assert f" {VARIABLE}={ray_environment(Settings())[VARIABLE]} " in DOCKERFILE
