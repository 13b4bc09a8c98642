"""The benchmark at its smallest: the same requests for all, and figures that follow from them."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from cp_serve.bench.__main__ import main
from cp_serve.bench.run import Config
from cp_serve.bench.traffic import Traffic, Wish


def served(traffic: Traffic, seconds: float) -> list[tuple[float, Wish]]:
    """What comes of traffic that is answered one by one, each in so many seconds."""
    now, seen = 0.0, []
    waiting: list[tuple[float, Wish]] = []
    while not traffic.finished:
        waiting += traffic.arrived(now)
        if waiting:
            seen.append(waiting.pop(0))
            now += seconds
            traffic.answered(seen[-1][1], now)
        else:
            assert traffic.next_at is not None
            now = traffic.next_at
    return seen


def test_at_saturation_everybody_waits_for_one_picture_at_a_time() -> None:
    seen = served(Traffic(people=4, versions=2, count=40, seed=1, think=0.1), 1.0)
    assert len(seen) == 40
    assert {wish.version for _, wish in seen} == {0, 1}
    counts = [sum(wish.person == person for _, wish in seen) for person in range(4)]
    assert min(counts) >= 9


def test_open_traffic_is_poisson_and_does_not_depend_on_who_serves() -> None:
    traffic = [Traffic(people=32, versions=8, count=400, seed=3, rate=2.0) for _ in range(2)]
    fast, slow = served(traffic[0], 0.01), served(traffic[1], 3.0)
    assert [moment for moment, _ in fast] == [moment for moment, _ in slow]
    gaps = [after - before for (before, _), (after, _) in pairwise(fast)]
    assert mean(gaps) == pytest.approx(0.5, rel=0.15)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # several adapters are the point
def test_the_run_writes_what_the_contract_names(
    tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"base": tiny_folders["epsilon"], "people": 3, "versions": 2, "requests": 6, "rounds": 1, "steps": 2}
    flags = [text for name, value in quick.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["bench", "-o", str(tmp_path), "--threads", "1", "--max-batch", "2", *flags])
    main()
    results = json.loads((tmp_path / "results.json").read_text())
    raw = results["saturation"][0]
    assert results["throughput_vs_set_adapters"] == pytest.approx(
        raw["ours"]["images_per_second"] / raw["set_adapters"]["images_per_second"]
    )
    assert results["throughput_vs_static_batches"] > 0
    half = results["half_load"]
    assert results["p95_at_half_load_vs_static_batches"] == half["ours"]["p95"] / half["static_batches"]["p95"]
    assert len(half["ours"]["latencies"]) == len(half["static_batches"]["latencies"]) == 6
    assert 0 < results["overhead_fraction"] < 1
    assert results["max_pixel_difference"] <= 2
    assert results["bytes_per_person"] > 0
    for name in ("throughput.png", "latency.png", "summary.md"):
        assert (tmp_path / name).stat().st_size


def test_by_default_it_is_the_traffic_that_was_asked_for() -> None:
    assert (Config().people, Config().versions) == (32, 8)
