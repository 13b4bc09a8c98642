"""A real MLflow server delivers a webhook to the real application: its signature is ours to check, and it is heeded."""

import base64
import os
from pathlib import Path

import pytest
import requests

from services.runs import Server
from services.settings import Settings
from services.webhook import NAME, PATH, ensure_webhook
from tests.cp_serve.conftest import Serving
from tests.house import wait_until
from tests.ports import free_ports
from tests.stack import running


@pytest.fixture
def webhook_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a server, not yet running, that may call loopback addresses."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    monkeypatch.setenv("MLFLOW_WEBHOOK_CACHE_TTL", "1")
    monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", base64.urlsafe_b64encode(os.urandom(32)).decode())
    return Settings(home=tmp_path, mlflow_port=free_ports(1)[0])


def test_mlflow_itself_is_heeded(webhook_server: Settings, serving: Serving, api_url: str) -> None:
    def hints() -> float:
        lines = requests.get(f"{api_url}/metrics", timeout=60).text.splitlines()
        return float(next(line for line in lines if line.startswith("palimpsest_http_hints_total")).split()[1])

    before = hints()
    hook = {"webhook_url": f"{api_url}{PATH}", "webhook_secret": serving.settings.webhook_secret}
    with running(webhook_server) as settings:
        assert not ensure_webhook(settings)
        wrong = settings.model_copy(update=hook | {"webhook_secret": "another", "webhook_url": "http://127.0.0.1:9/x"})
        for named in (wrong, settings.model_copy(update=hook), settings.model_copy(update=hook)):
            assert ensure_webhook(named)
        client = Server(settings.mlflow).client
        (only,) = client.list_webhooks()
        assert (only.name, only.url) == (NAME, hook["webhook_url"])
        client.create_registered_model("hooked")
        client.create_model_version("hooked", "s3://nowhere/x", await_creation_for=0)

        def moved() -> bool:
            client.set_registered_model_alias("hooked", "live", "1")  # events right after its creation are lost
            return hints() > before

        wait_until(moved)
