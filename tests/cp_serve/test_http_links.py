"""Links to pictures, requests that are sent again, ids of requests, deadlines, webhooks, metrics, pages."""

import asyncio
import base64
import json
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature
from prometheus_client.parser import text_string_to_metric_families
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.testclient import TestClient

from cp_serve.house import House
from cp_serve.http import build_app
from services.errors import UnavailableError
from services.telemetry import JsonLines
from tests.cp_serve.conftest import Serving, listening
from tests.cp_serve.drawings import Gate
from tests.cp_serve.handles import Handle
from tests.cp_serve.test_http import PATH, PROMPT, SECRET, pictures, refused
from tests.cp_serve.versions import publish
from tests.house import wait_until

HOOK = "/v1/hooks/mlflow"


def test_a_link_leads_to_the_picture_for_a_while(serving: Serving) -> None:
    inline = serving.generate(n=2, output_format="png")
    linked = serving.generate(n=2, output_format="png", response_format="url")
    for one, other in zip(linked["data"], inline["data"], strict=True):
        assert one.keys() == {"url", "seed"}
        assert one["url"].startswith(f"{serving.settings.api}/v1/pictures/")
        response = serving.client.get(one["url"].removeprefix(serving.settings.api))
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "private" in response.headers["cache-control"]
        assert pictures({"data": [other]})[0].tobytes() == _pixels(response.content)


def _pixels(file: bytes) -> bytes:
    return pictures({"data": [{"b64_json": base64.b64encode(file).decode()}]})[0].tobytes()


def test_a_picture_that_the_client_has_is_not_sent_again(serving: Serving) -> None:
    (one,) = serving.generate(response_format="url")["data"]
    path = one["url"].removeprefix(serving.settings.api)
    etag = serving.client.get(path).headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        response = serving.client.get(path, headers={"If-None-Match": known})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert serving.client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("change", ["signature=", "signature=0", "x=1"])
def test_a_link_without_its_signature_leads_nowhere(serving: Serving, change: str) -> None:
    (one,) = serving.generate(response_format="url", steps=1)["data"]
    path = one["url"].removeprefix(serving.settings.api).partition("?")[0]
    refused(serving.client.get(f"{path}?{change}"), 404, "not_found", "name", "no such picture")


def test_what_is_sent_again_is_not_drawn_again(serving: Serving) -> None:
    headers = {"Idempotency-Key": "key-1"}
    body = PROMPT | {"steps": 2}
    first = serving.client.post(PATH, json=body, headers=headers)
    drawn = serving.denoiser.engine.steps_done
    again = serving.client.post(PATH, json=body, headers=headers)
    assert serving.denoiser.engine.steps_done == drawn
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    refused(
        serving.client.post(PATH, json=body | {"steps": 3}, headers=headers),
        422,
        "invalid_value",
        "Idempotency-Key",
        "another request",
    )


def test_what_failed_is_tried_again_under_its_key(serving: Serving) -> None:
    headers = {"Idempotency-Key": "key-2"}
    with serving.full():
        assert serving.client.post(PATH, json=PROMPT, headers=headers).status_code == 503
    while (response := serving.client.post(PATH, json=PROMPT | {"steps": 2}, headers=headers)).status_code == 409:
        pass  # the claim is given up a moment after the answer
    assert response.status_code == 200


def test_what_is_carried_out_twice_under_a_key_gives_the_same_pictures(serving: Serving) -> None:
    """Two who find a dead holder's claim at the same moment both draw."""
    home: House = serving.app.state.house
    body = {field: value for field, value in PROMPT.items() if field != "seed"} | {"steps": 2}
    drawn = []
    for key in ("key-4", "key-4", "key-5", "", ""):
        response = serving.client.post(PATH, json=body, headers={"Idempotency-Key": key} if key else {})
        assert (response.status_code, response.headers.get("idempotent-replayed")) == (200, None)
        drawn.append(response.json()["data"][0])
        home.answers.give_up(key)
    assert drawn[0] == drawn[1]
    assert len({one["seed"] for one in drawn}) == 4


def test_a_key_whose_answer_could_not_be_kept_is_free_again_when_the_store_is_back(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    home: House = serving.app.state.house

    def away(*_: object) -> None:
        raise UnavailableError("The store is away.")

    monkeypatch.setattr("services.patience._FIRST", 0.01)
    monkeypatch.setattr(home.store, "put", away)
    monkeypatch.setattr(home.store, "delete", away)
    headers, body = {"Idempotency-Key": "key-6"}, PROMPT | {"steps": 2}
    assert serving.client.post(PATH, json=body, headers=headers).status_code == 200
    assert serving.client.post(PATH, json=body, headers=headers).status_code == 409, "nobody knows what it was"
    monkeypatch.undo()
    wait_until(lambda: serving.client.post(PATH, json=body, headers=headers).status_code == 200)


def test_while_the_first_is_under_way_the_second_is_told_so(serving: Serving) -> None:
    headers = {"Idempotency-Key": "key-3"}
    with Gate(serving.denoiser.base) as gate, ThreadPoolExecutor(1) as pool:
        first = pool.submit(serving.client.post, PATH, json=PROMPT, headers=headers)
        gate.arrived()
        second = serving.client.post(PATH, json=PROMPT, headers=headers)
        gate.open()
        assert first.result().status_code == 200
    refused(second, 409, "conflict", "Idempotency-Key", "under way")
    assert int(second.headers["retry-after"]) >= 1


def test_a_request_has_an_id_that_answers_errors_and_logs_share(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("palimpsest").propagate = True
    caplog.set_level(logging.INFO)
    try:
        ours = serving.client.get("/v1/models").headers["x-request-id"]
        assert ours.startswith("req-")
        own = {"X-Request-Id": "my-id.1"}
        assert serving.client.get("/v1/models/nobody", headers=own).headers["x-request-id"] == "my-id.1"
        for bad in ("a b", "x" * 129, "é".encode("latin-1")):
            assert serving.client.get("/v1/models", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad
    finally:
        logging.getLogger("palimpsest").propagate = False
    lines = [record.getMessage() for record in caplog.records if record.name == "palimpsest.http"]
    assert any(line.startswith("GET /v1/models/{model} 404 ") for line in lines)


def test_a_line_of_the_log_can_be_json_with_the_requests_id(serving: Serving) -> None:
    lines: list[str] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Capture()
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("palimpsest")
    logger.addHandler(handler)
    try:
        serving.client.post(PATH, json=PROMPT | {"prompt": SECRET, "steps": 1}, headers={"X-Request-Id": "id-7"})
    finally:
        logger.removeHandler(handler)
    (line,) = [json.loads(line) for line in lines if "id-7" in line and '"route"' in line]
    assert (line["request_id"], line["route"], line["status"], line["level"]) == ("id-7", PATH, 200, "INFO")
    assert line.keys() >= {"time", "logger", "message", "method", "seconds"}
    assert SECRET not in "".join(lines)


def test_a_request_may_be_less_patient_than_the_server(serving: Serving) -> None:
    with Gate(serving.denoiser.base):
        response = serving.client.post(PATH, json=PROMPT | {"deadline_seconds": 0.3, "steps": 1})
    refused(response, 504, "deadline_exceeded", None, "ask for fewer images or steps")
    refused(
        serving.client.post(PATH, json=PROMPT | {"deadline_seconds": 0}), 422, "invalid_value", "deadline_seconds", ""
    )


def test_a_dead_replica_loses_no_request(serving: Serving) -> None:
    before = _metrics(serving).get("palimpsest_http_retries_total", 0)
    serving.handle.deaths = 2
    assert serving.generate()["model"] == "pets@2"
    serving.handle.deaths = 0
    assert _metrics(serving)["palimpsest_http_retries_total"] == before + 2


def _metrics(serving: Serving) -> dict[str, float]:
    response = serving.client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_metrics_count_requests_by_route_and_name_nobody(serving: Serving) -> None:
    serving.generate(user=SECRET, prompt=SECRET)
    serving.client.get("/v1/lineages/nobody")
    serving.client.request("BREW", f"/{SECRET}")
    text = serving.client.get("/metrics").text
    assert f'palimpsest_http_requests_total{{method="POST",route="{PATH}",status="200"}}' in text
    assert 'route="/v1/lineages/{lineage}",status="404"' in text
    assert 'method="other",route="none",status="404"' in text
    assert "palimpsest_steps_total" in text
    assert 'replica="' in text
    assert SECRET not in text
    assert "nobody" not in text


def test_metrics_come_as_openmetrics_too(serving: Serving) -> None:
    response = serving.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def _deliver(serving: Serving, secret: str, *, sent: float, **told: object) -> int:
    event = {"entity": "model_version_alias", "action": "created"}
    body, stamp = json.dumps(event | told), str(int(sent))
    headers = {
        "X-MLflow-Delivery-Id": "d-1",
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": _generate_hmac_signature(secret, "d-1", stamp, body),
    }
    return serving.client.post(HOOK, content=body, headers=headers).status_code


def test_a_webhook_is_heeded_if_mlflow_signed_it(serving: Serving) -> None:
    before = _metrics(serving)["palimpsest_http_hints_total"]
    assert _deliver(serving, "hook-secret", sent=time.time()) == 204
    assert _metrics(serving)["palimpsest_http_hints_total"] == before + 1
    assert _deliver(serving, "wrong", sent=time.time()) == 401
    assert _deliver(serving, "hook-secret", sent=time.time() - 3600) == 401
    refused(serving.client.post(HOOK, json={}), 401, "unauthorized", None, "signature")
    assert _metrics(serving)["palimpsest_http_hints_total"] == before + 1


@pytest.mark.parametrize("alive", [True, False])
def test_an_overruled_move_that_a_webhook_tells_of_is_in_the_history(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """Also where no replica is there to be told of it."""

    def gone(*_: object) -> None:
        raise DeploymentUnavailableError(DeploymentID("denoiser"))

    if not alive:
        monkeypatch.setattr(serving.handle, "broadcast", gone)
    lineage = f"l{uuid4().hex[:8]}"
    for adapter in serving.adapters.values():
        publish(serving.registry, lineage, serving.denoiser.base, adapter)
    at = datetime.now(UTC) + timedelta(hours=1)  # none through Palimpsest is of that time
    data = {"name": lineage, "alias": "live", "version": "1"}
    assert _deliver(serving, "wrong", sent=time.time(), timestamp=at.isoformat(), data=data) == 401
    assert serving.registry.history(lineage)[-1].action == "move"
    assert _deliver(serving, "hook-secret", sent=time.time(), timestamp=at.isoformat(), data=data) == 204
    found = serving.registry.history(lineage)[-1]
    assert (found.action, found.before, found.after) == ("overruled", 1, 2)
    monkeypatch.undo()
    missing = data | {"name": "nobody-has-it"}
    assert _deliver(serving, "hook-secret", sent=time.time(), timestamp=at.isoformat(), data=missing) == 204


def test_mlflow_is_asked_to_tell_a_move_again_that_could_not_be_looked_into(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(serving.registry, "look_into", away)
    data = {"name": "pets", "alias": "live", "version": "1"}
    told = {"timestamp": datetime.now(UTC).isoformat(), "data": data}
    assert _deliver(serving, "hook-secret", sent=time.time(), **told) == 503


def test_a_replica_that_hangs_is_told_of_and_holds_up_neither_figures_nor_a_move(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging:
        def __getattr__(self, _: str) -> Callable[..., Coroutine[None, None, object]]:
            async def never(*_: object) -> object:
                return await asyncio.Event().wait()

            return never

    monkeypatch.setattr("cp_serve.replicas._SLACK", 0.05)
    lineage = f"l{uuid4().hex[:8]}"
    for adapter in serving.adapters.values():
        publish(serving.registry, lineage, serving.denoiser.base, adapter)
    handle = Handle(serving.denoiser, Hanging())
    home: House = serving.app.state.house
    house = House(home.settings, home.registry, handle, home.store)
    with TestClient(build_app(house)) as client:
        text = client.get("/metrics").text
        assert "palimpsest_steps_total" in text
        assert "palimpsest_http_silent_replicas 1.0" in text
        assert client.put(f"/v1/lineages/{lineage}/live", json={"version": 1}).json()["live"] == 1
        serving.await_live(lineage, 1)


def test_the_first_page_leads_on_and_runs_nothing(serving: Serving) -> None:
    response = serving.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "<script" not in response.text
    for path in ("/docs", "/openapi.json", "/v1/models", "/readyz", "/metrics"):
        assert f'href="{path}"' in response.text
        assert serving.client.get(path).status_code == 200


def test_a_body_that_does_not_come_is_given_up(serving: Serving) -> None:
    home: House = serving.app.state.house
    hasty = House(serving.settings.model_copy(update={"body_seconds": 0.2}), home.registry, home.denoiser, home.store)
    head = (
        f"POST {PATH} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        "Content-Length: 1000",
        "",
        '{"model"',
    )
    with listening(build_app(hasty)) as url, socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as slow:
        slow.sendall("\r\n".join(head).encode())
        with slow.makefile("rb") as answer:
            text = answer.read().decode()
    assert text.startswith("HTTP/1.1 408 ")
    assert '"code":"timeout"' in text
