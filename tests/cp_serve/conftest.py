"""One replica and its HTTP application for this folder, on the real registry; Ray alone is left out."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from cp_serve.denoiser import Denoiser
from cp_serve.engine import Places
from cp_serve.http import House, build_app
from services.adapter import Adapter
from services.base_model import BaseModel
from services.lineage import Registry
from services.objects import open_store
from services.settings import Settings
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.following import Rooms, rooms_of
from tests.cp_serve.handles import Handle
from tests.cp_serve.versions import adapter_of, publish
from tests.house import wait_until
from tests.ports import free_ports


@dataclass(frozen=True, eq=False)
class Serving:
    """A replica and its application. `pets` has versions 1 (<fox>) and 2 (<fox>, <robot>); 2 is live."""

    settings: Settings
    registry: Registry
    denoiser: Denoiser
    handle: Handle
    app: FastAPI
    client: TestClient
    adapters: dict[int, Adapter]

    def generate(self, **fields: object) -> dict[str, Any]:
        """A generation that must succeed."""
        body = {"model": "pets", "prompt": "a <fox>", "steps": 2, "seed": 1}
        response = self.client.post("/v1/images/generations", json=body | fields)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def full(self) -> AbstractContextManager[Places]:
        """While it lasts, there is no room for anybody."""
        engine = self.denoiser.engine
        return engine.places(Places(engine.max_batch + engine.max_queue, steps=1))

    def await_live(self, lineage: str, number: int | None) -> None:
        """Wait until the follower has seen an alias."""
        wait_until(lambda: self.denoiser.bank.pointers().get(lineage) == number)


@pytest.fixture(scope="package")
def serving_settings(mlflow_server: Settings, tiny_folders: Mapping[str, Path]) -> Settings:
    return mlflow_server.model_copy(
        update={
            "base": str(tiny_folders["epsilon"]),
            "device": "cpu",
            "follow_seconds": 0.1,
            "deadline_seconds": 86_400.0,  # a step that a test holds makes all seem slow
            "webhook_secret": "hook-secret",
            "ray_address": f"http://127.0.0.1:{free_ports(1)[0]}",  # nobody is there
        }
    )


@pytest.fixture(scope="package")
def serving(serving_settings: Settings) -> Iterator[Serving]:
    store = open_store(serving_settings)
    registry = Registry(serving_settings, store)
    denoiser = Denoiser(serving_settings)
    base = denoiser.base
    try:
        adapters = {
            1: adapter_of(base, {"fox": 1}, seed=1),
            2: adapter_of(base, {"fox": 1, "robot": 2}, seed=2),
        }
        for adapter in adapters.values():
            publish(registry, "pets", base, adapter)
        handle = Handle(denoiser)
        app = build_app(House(serving_settings, registry, handle, store))
        with TestClient(app, raise_server_exceptions=False) as client:
            found = Serving(serving_settings, registry, denoiser, handle, app, client, adapters)
            found.await_live("pets", 2)
            yield found
    finally:
        denoiser.close()


@pytest.fixture(scope="package")
def api_url(serving: Serving) -> Iterator[str]:
    """URL of a real uvicorn server in front of the application."""
    with listening(serving.app) as url:
        yield url


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """URL of a real uvicorn server in front of an application."""
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@pytest.fixture
def rooms(mlflow_server: Settings, tiny_base: BaseModel) -> Iterator[Rooms]:
    with rooms_of(mlflow_server, tiny_base) as rooms:
        yield rooms
