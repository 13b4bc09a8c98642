"""What the local stack gives to the servers that it starts."""

from pathlib import Path

import pytest

from services.local_stack import ray_environment
from services.settings import Settings


def test_another_clusters_settings_do_not_reach_the_local_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray sets it in every process that had a cluster of its own
    environment = ray_environment(Settings(home=tmp_path))
    assert "RAY_ADDRESS" not in environment
    assert environment["RAY_AUTH_MODE"] == "disabled"
