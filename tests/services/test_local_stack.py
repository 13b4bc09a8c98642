"""What the local stack gives to the servers that it starts."""

import stat
from pathlib import Path

import pytest
import requests

from services.errors import UnavailableError
from services.lineage import Registry
from services.local_stack import mlflow_command, ray_command, ray_environment
from services.mlflow_auth import client_environment
from services.objects import open_store
from services.settings import Settings
from tests.lineages import publish
from tests.ports import free_ports
from tests.stack import backend_reached, running


def test_another_clusters_settings_do_not_reach_the_local_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray sets it in every process that had a cluster of its own
    environment = ray_environment(Settings(home=tmp_path))
    assert "RAY_ADDRESS" not in environment
    assert environment["RAY_AUTH_MODE"] == "disabled"


def test_ports_that_ray_fixes_are_others_for_each_head(tmp_path: Path) -> None:
    """Two heads on one machine do not fight for them, nor does anybody who is given any port."""
    ports = [
        int(word.rpartition("=")[2])
        for _ in range(2)
        for word in ray_command(Settings(home=tmp_path))
        if word.startswith(("--dashboard-agent-listen-port=", "--ray-client-server-port="))
    ]
    assert len(ports) == len(set(ports)) == 4
    assert all(19_999 < port < 32_768 for port in ports)


def test_mlflow_asks_for_a_password_of_its_own_where_the_api_asks_for_tokens(tmp_path: Path) -> None:
    """One that was made for it; whoever has none sees and moves nothing."""
    settings = Settings(home=tmp_path, mlflow_port=free_ports(1)[0], auth="tokens")
    assert client_environment(settings) == {}, "nothing was made yet"
    with running(settings):
        secret = tmp_path / "secrets" / "mlflow_password"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert not any(secret.read_text() in word for word in mlflow_command(settings))
        search = f"{settings.mlflow}/api/2.0/mlflow/registered-models/search"
        for who in (None, ("admin", "password1234"), ("palimpsest", "password1234"), ("palimpsest", "")):
            assert requests.get(search, auth=who, timeout=60).status_code == 401
        with pytest.raises(UnavailableError, match="does not let us in"):
            Registry(settings, open_store(settings)).lineages()
        with backend_reached(settings):
            registry = Registry(settings, open_store(settings))
            assert publish(registry, "pets").number == 1
            assert registry.lineages() == ["pets"]
    assert client_environment(settings.model_copy(update={"auth": "off"})) == {}
    assert client_environment(settings.model_copy(update={"mlflow_uri": "http://elsewhere:5000"})) == {}
