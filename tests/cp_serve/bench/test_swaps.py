"""The measurement of swaps, at its smallest, against a real replica, a real MLflow and a real server."""

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from cp_serve.bench import swaps
from cp_serve.bench.swaps import _apart, _most
from tests.cp_serve.conftest import Serving


def test_it_tells_what_happened(
    serving: Serving, api_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = serving.settings.model_copy(update={"http_port": urlsplit(api_url).port})
    monkeypatch.setattr(swaps, "get_settings", lambda: there)
    monkeypatch.setattr(sys, "argv", ["swaps", "-o", str(tmp_path), "--flips", "4", "--moves", "2", "--clients", "2"])
    assert swaps.main() == 0
    found = json.loads((tmp_path / "swaps.json").read_text())
    assert (found["failed"], found["torn"]) == (0, 0), found["failures"]
    assert found["drawn"] > 0
    assert found["replicas"] == 1
    assert found["first_picture_seconds_webhook"] == [], "this house has none"
    assert len(found["first_picture_seconds_polling"]) == 2
    assert found["longest_pause_at_most"] > 0
    assert found["longest_step_at_most"] > 0
    (moves,) = found["pointer_moves"]
    assert 1 <= moves <= 4, "of flips between two looks the replica sees the last"
    still = found["without_flips"]
    assert (still["failed"], still["torn"], still["pointer_moves"]) == (0, 0, [0])
    assert still["seconds"] >= found["seconds"]
    assert still["drawn"] > 0
    report = (tmp_path / "swaps.md").read_text()
    assert "4 flips while 2 clients drew" in report
    assert "|  | 4 flips | no flips |" in report
    assert not [name for name in serving.registry.lineages() if name.startswith("bench-")]


def test_a_bound_is_that_of_what_was_seen_since() -> None:
    before = {0.1: 3.0, 1.0: 4.0, float("inf"): 5.0}
    assert _most(before, {0.1: 3.0, 1.0: 6.0, float("inf"): 7.0}) == 1.0
    assert _most(before, {0.1: 4.0, 1.0: 5.0, float("inf"): 6.0}) == 0.1
    assert _most(before, before) == 0.0
    assert _most({}, {0.1: 0.0, float("inf"): 1.0}) == float("inf")


def test_a_difference_is_told_whatever_its_sign() -> None:
    dark, light = np.zeros((2, 2, 3), np.int16), np.full((2, 2, 3), 255, np.int16)
    assert _apart(dark, light) == _apart(light, dark) == 255
