"""The benchmark at its smallest: the same requests for all, and figures that follow from them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import pytest
import torch

from cp_serve.bench import step
from cp_serve.bench.__main__ import main
from cp_serve.bench.profile import Profile, length_of_union
from cp_serve.bench.report import summary
from cp_serve.bench.run import Config, _requests
from cp_serve.bench.traffic import Traffic, Wish
from cp_serve.split import split_among_threads
from services import machine
from services.base_model import BaseModel
from tests.house import wait_until


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


def test_a_batch_that_is_split_among_threads_is_one_step(tiny_base: BaseModel) -> None:
    profile = Profile(tiny_base)
    unet = profile.watched(split_among_threads(lambda x_RCHW, *_: x_RCHW, 2))
    with profile.watching():
        unet(torch.zeros(32, 4, 2, 2), torch.zeros(32), torch.zeros(32, 3, 4), 16)
    assert profile.rows == [32]
    assert profile.covered("unet") == pytest.approx(profile.seconds()["unet"])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # several adapters are the point
def test_the_run_writes_what_the_contract_names(
    tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"base": tiny_folders["epsilon"], "people": 3, "versions": 2, "requests": 6, "rounds": 1, "steps": 2}
    flags = [text for name, value in quick.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["bench", "-o", str(tmp_path), "--threads", "1", "--max-batch", "2", *flags])
    assert main() == 0
    results = json.loads((tmp_path / "results.json").read_text())
    raw, half = results["saturation"][0], results["half_load"]
    assert results["throughput_vs_set_adapters"] == pytest.approx(
        raw["ours"]["images_per_second"] / raw["set_adapters"]["images_per_second"]
    )
    assert results["throughput_vs_static_batches"] > 0
    assert results["p95_at_half_load_vs_static_batches"] == half["ours"]["p95"] / half["static_batches"]["p95"]
    for row in (*raw.values(), half["ours"], half["static_batches"]):
        assert len(row["latencies"]) == 6
        assert 1 <= row["together"] <= 2
        assert 0 <= row["others_cpu"] <= 1
    assert {row["together"] for name, row in raw.items() if name in ("set_adapters", "load_lora_weights")} == {1}
    profile = raw["ours"]["profile"]
    assert results["overhead_fraction"] == profile["neither"]
    assert 0 < profile["unet"] < 1
    assert 0 < 1 - profile["neither"] <= profile["unet"] + profile["vae"] + 1e-9
    assert results["max_pixel_difference"] <= 2
    assert results["bytes_per_person"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latency.png",
        "results.json",
        "serving.md",
        "throughput.png",
    ]
    told = (tmp_path / "serving.md").read_text()
    assert "`python -m cp_serve.bench -o DIR --base" in told
    assert str(tmp_path) not in told.replace(str(tiny_folders["epsilon"]), "")


def test_a_mistake_on_the_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["-o", "x", "--people", "0"], ["--people", "3"], ["-o", "x", "--steps", "many"]):
        monkeypatch.setattr(sys, "argv", ["bench", *flags])
        assert main() == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_by_default_it_is_the_traffic_that_was_asked_for() -> None:
    assert (Config().people, Config().versions) == (32, 8)


def test_ways_to_run_a_step_are_timed_in_turns(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", str(tiny_folders["epsilon"]), "--threads", "1", "--rows", "1", "2", "--turns", "1"]
    monkeypatch.setattr(sys, "argv", ["step", *flags])
    step.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.count(" rows: ms a row") == 2
    assert {"float32", "float32, as served, all guided", "bfloat16"} <= {
        row.split(" | ")[0].strip("| ") for row in rows
    }
    assert all(float(cell.split(" (")[0]) > 0 for row in rows for cell in row.strip("|").split(" | ")[1:])


def test_a_budget_of_minutes_becomes_a_number_of_requests() -> None:
    assert _requests(Config(minutes=10), 0.7) == pytest.approx(100, rel=0.1)
    assert _requests(Config(minutes=10), 60.0) == 64, "fewer say nothing of a p95"
    assert _requests(Config(minutes=10), 0.001) == 384
    assert _requests(Config(requests=7), 0.7) == 7


def test_intervals_that_overlap_are_counted_once() -> None:
    assert length_of_union([]) == 0
    assert length_of_union([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == pytest.approx(4.0)


def test_what_others_do_is_noticed() -> None:
    others = machine.Others()
    elsewhere = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        wait_until(lambda: psutil.Process(elsewhere.pid).cpu_times().user > 0.3)
        assert 0 < others.share() <= 1
    finally:
        elsewhere.kill()
        elsewhere.wait()


def results_of(**changes: float) -> dict[str, Any]:
    row = {"images_per_second": 4.0, "together": 9.0, "p50": 1.0, "p95": 2.0, "p99": 3.0, "others_cpu": 0.01}
    profile = {"unet": 0.9, "vae": 0.1, "text_encoder": 0.01, "neither": 0.04}
    names = ("ours", "set_adapters", "load_lora_weights", "static_batches")
    rounds = [{name: row | {"profile": profile} for name in names}] * 2
    figures = {
        "throughput_vs_set_adapters": 2.6,
        "throughput_vs_load_lora_weights": 3.0,
        "throughput_vs_static_batches": 1.2,
        "p95_at_half_load_vs_static_batches": 0.4,
        "overhead_fraction": 0.04,
        "max_pixel_difference": 1,
        "bytes_per_person": 2048,
        "measured_bytes_per_person": 3072,
        "others_cpu": 0.02,
        "requests": 96,
        "seconds_of_one": 0.7,
        "config": vars(Config()),
        "machine": machine.describe(),
        "load_before": machine.load(),
        "load_after": machine.load(),
        "saturation": rounds,
        "half_load": {"requests_per_second": 1.0, "ours": row, "static_batches": row},
    }
    return figures | changes


def test_the_section_says_what_was_met_and_what_was_missed() -> None:
    text = summary(results_of(), ["python", "-m", "cp_serve.bench"])
    assert text.startswith("# Serving\n")
    assert "| `throughput_vs_set_adapters` | 2.6 | at least 2.5 | met |" in text
    assert "| `throughput_vs_static_batches` | 1.2 | at least 1.5 | missed |" in text
    assert "not idle" not in text
    assert all(line.count("|") in (0, line.count(" | ") + 2) for line in text.splitlines())


def test_on_a_busy_machine_it_says_so() -> None:
    assert "was not idle" in summary(results_of(others_cpu=0.4), ["bench"])
