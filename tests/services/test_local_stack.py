"""What the local stack gives to the servers that it starts."""

from pathlib import Path

import pytest

from services.local_stack import ray_command, ray_environment
from services.settings import Settings


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
