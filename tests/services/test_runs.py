"""Runs, and MLflow servers that are down, slow or not MLflow servers at all."""

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import pytest

from services.errors import (
    InputError,
    NotFoundError,
    UnavailableError,
)
from services.lineage import CANDIDATE, Registry
from services.objects import ObjectStore, open_store
from services.settings import Settings
from tests.lineages import Mlflow, begin, fetch, publish
from tests.proxy import Proxy


def test_runs_hold_params_metrics_and_files(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    params = {f"p{index}": index for index in range(150)}
    run_id = registry.create_run(lineage, name="learn c0", params=params, tags={"palimpsest.job": "j"})
    for step in range(3):
        registry.log_metrics(run_id, {"loss": 1.0 / (step + 1), "accuracy": float("nan")}, step)
    registry.put_artifact(run_id, "samples/x.png", b"picture")
    registry.end_run(run_id, "FAILED")
    registry.end_run(run_id, "FAILED")
    run = mlflow_client.get_run(run_id)
    assert mlflow_client.get_experiment(run.info.experiment_id).name == f"palimpsest/{lineage}"
    assert len(run.data.params) == 150
    assert [entry.value for entry in mlflow_client.get_metric_history(run_id, "loss")] == [1.0, 0.5, 1 / 3]
    assert (run.info.status, run.data.tags["palimpsest.job"]) == ("FAILED", "j")
    assert stack_store.get(f"{stack_store.key_of(run.info.artifact_uri)}/samples/x.png") == b"picture"
    assert run.info.end_time
    assert registry.metrics(lineage) == {run_id: {"loss": 1 / 3}}, "the last ones that are numbers"
    assert registry.metrics("nobody") == {}


def test_runs_hold_many_metrics_and_a_page(registry: Registry, mlflow_client: Mlflow, lineage: str) -> None:
    run_id = begin(registry, lineage)
    many = {f"drift.c{number}.kv": 1 / (number + 1) for number in range(1100)}
    registry.log_metrics(run_id, many)
    registry.log_metrics(run_id, {})
    registry.describe_run(run_id, "**What it learned**")
    registry.tag_run(run_id, {"palimpsest.kind": "x"})
    found = mlflow_client.get_run(run_id).data
    assert found.metrics == many
    tags = found.tags
    assert (tags["mlflow.note.content"], tags["palimpsest.kind"]) == ("**What it learned**", "x")


def test_files_of_a_run_stay_beside_its_version(registry: Registry, lineage: str) -> None:
    run_id = begin(registry, lineage)
    for path in ("adapter/manifest.json", "adapter", "../x", "a/../../x", "/x", "", "a//b", "./adapter/x"):
        with pytest.raises(InputError):
            registry.put_artifact(run_id, path, b"x")


def test_an_unknown_run_is_an_error(registry: Registry) -> None:
    calls: list[Callable[[str], object]] = [
        lambda run_id: registry.put_artifact(run_id, "x", b"x"),
        lambda run_id: registry.log_metrics(run_id, {"loss": 1.0}),
        registry.end_run,
    ]
    for call, run_id in product(calls, ("0" * 32, "../x", "")):
        with pytest.raises((NotFoundError, InputError)):
            call(run_id)


def test_a_deleted_experiment_is_used_again(registry: Registry, mlflow_client: Mlflow, lineage: str) -> None:
    experiment_id = mlflow_client.get_run(begin(registry, lineage)).info.experiment_id
    mlflow_client.delete_experiment(experiment_id)
    assert mlflow_client.get_run(begin(registry, lineage)).info.experiment_id == experiment_id


def test_short_trouble_is_not_noticed(
    far_registry: Registry, lineage: str, mlflow_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runs._QUICK", 600.0)  # an answer that is lost late is short trouble, too
    publish(far_registry, lineage)
    mlflow_proxy.lose_answers = 2
    assert far_registry.aliases(lineage) == {CANDIDATE: 1}


def test_a_server_that_is_down_is_said_to_be_and_is_used_when_back(
    far_registry: Registry, lineage: str, mlflow_proxy: Proxy
) -> None:
    info = publish(far_registry, lineage)
    mlflow_proxy.down()
    calls: list[Callable[[], object]] = [
        far_registry.live_versions,
        lambda: far_registry.versions(lineage),
        lambda: fetch(far_registry, info),
        lambda: publish(far_registry, lineage),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match=f"MLflow at {mlflow_proxy.endpoint} does not answer"):
            call()
    mlflow_proxy.up()
    assert fetch(far_registry, info)


def test_a_server_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings(home=tmp_path, mlflow_uri=uri)
        with pytest.raises(UnavailableError, match=uri):
            Registry(settings, open_store(settings)).live_versions()


class Garbage:
    """An HTTP server that answers everything alike."""

    def __init__(self, status: int, body: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> "Garbage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"{}"),
        (200, b"[]"),
        (200, b"<html>"),
        (200, b"\xff\xfe"),
        (200, b'{"registered_models": 5, "registered_model": 5, "run": 5, "experiment": 5}'),
        (200, b'{"registered_models": [5], "registered_model": {"name": 5}, "run": {"info": 5}}'),
        (302, b""),
        (400, b"<html>"),
        (400, b'{"error_code": [1]}'),
        (401, b"who are you"),
        (403, b"Invalid Host header"),
        (404, b"<html>"),
        (429, b""),
        (500, b"{}"),
        (503, b""),
    ],
)
def test_garbage_is_not_taken_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes
) -> None:
    monkeypatch.setattr("services.runs._PAUSES", (0, 0))
    with Garbage(status, body) as garbage:
        settings = Settings(home=tmp_path, mlflow_uri=garbage.uri)
        registry = Registry(settings, open_store(settings))
        calls: list[Callable[[], object]] = [
            registry.live_versions,
            lambda: registry.aliases("x"),
            lambda: registry.version("x", 1),
            lambda: registry.find_submission("x", "s"),
            lambda: registry.promote("x", 1, expected=None),
            lambda: begin(registry, "x"),
            lambda: registry.put_artifact("0" * 32, "x", b"x"),
        ]
        for call in calls:
            with pytest.raises(UnavailableError, match="MLflow at"):
                call()


@pytest.mark.parametrize(
    "uri", ["mlruns", "/tmp/x", "sqlite:///x.db", "databricks", "http://", "http://me:secret@host"]
)
def test_the_uri_must_be_a_server_without_credentials(tmp_path: Path, uri: str) -> None:
    settings = Settings(home=tmp_path, mlflow_uri=uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        Registry(settings, open_store(settings))
    assert "secret" not in str(caught.value)
