"""What was expected, held against rows and runs made by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cp_train.benchmark import claims
from cp_train.benchmark.claims import NO_RUNS, OPEN, REFUTED, SHOWN
from cp_train.benchmark.results import Result, Row
from cp_train.benchmark.store import Cell, Record


def rows(label: str, values: list[float], name: str = "F_MMD", setup: str = "six") -> list[Row]:
    return [
        {"method": label, "setup": setup, "order": order, "seed": 0, name: value} for order, value in enumerate(values)
    ]


FAR, NEAR = [100.0, 110.0, 120.0], [10.0, 11.0, 12.0]


def test_better_is_shown_refuted_or_open_by_the_paired_interval() -> None:
    known = rows("ewc_dc", NEAR) + rows("clora", FAR)
    assert claims.better(known, "ewc_dc", "clora", "F_MMD").verdict == SHOWN
    assert claims.better(known, "clora", "ewc_dc", "F_MMD").verdict == REFUTED
    wild = rows("ewc_dc", [100.0, 150.0, 60.0]) + rows("clora", FAR)
    assert claims.better(wild, "ewc_dc", "clora", "F_MMD").verdict == OPEN
    assert claims.better(rows("ewc_dc", NEAR), "ewc_dc", "clora", "F_MMD").verdict == NO_RUNS


def test_half_is_against_the_best_of_the_papers() -> None:
    known = rows("ewc_dc", FAR) + rows("dsc_ewc_dc", [30.0, 33.0, 36.0]) + rows("kv", NEAR)
    claim = claims.halves(known, "kv", "F_MMD")
    assert claim.verdict == SHOWN
    assert "half of `dsc_ewc_dc`" in claim.found
    nearer = rows("ewc_dc", [15.0, 16.5, 18.0]) + rows("kv", NEAR)
    assert claims.halves(nearer, "kv", "F_MMD").verdict == REFUTED


def test_the_best_of_the_papers_is_found_on_runs_that_all_of_them_have() -> None:
    easy = rows("dsc_ewc", [30.0]) + rows("ewc_dc", [20.0, 300.0, 300.0]) + rows("kv", [9.0, 10.0, 11.0])
    claim = claims.halves(easy, "kv", "F_MMD")
    assert "half of `ewc_dc`" in claim.found, "300 is of orders that `dsc_ewc` never had"
    assert "3 pairs" in claim.found


@pytest.mark.parametrize(("seconds", "verdict"), [([11.0, 11.1, 11.2], SHOWN), ([13.0, 13.1, 13.2], REFUTED)])
def test_time_is_a_share_of_finetunings(seconds: list[float], verdict: str) -> None:
    name = "cpu_seconds_per_task"
    known = rows("finetune", [10.0, 10.1, 10.2], name) + rows("kv", seconds, name)
    assert claims.quick(known, "kv").verdict == verdict


def test_the_last_concept_is_as_good_as_finetunings_or_better() -> None:
    plain = rows("finetune", FAR, "A_MMD_last")
    found = [claims.learns(plain + rows("kv", values, "A_MMD_last"), "kv").verdict for values in (NEAR, FAR, [200.0])]
    assert found == [SHOWN, SHOWN, REFUTED]
    alone = rows("finetune", [100.0], "A_MMD_last") + rows("kv", [90.0], "A_MMD_last")
    assert claims.learns(alone, "kv").verdict == OPEN


def long(seconds: Any, stored: Any, order: int = 0) -> Result:
    """A run of fifty tasks."""
    records = {n: Record({"cpu_seconds": seconds(n), "stored": stored(n)}, {"x": torch.zeros(1)}) for n in range(1, 51)}
    told = {"concepts": [f"c{n}" for n in range(50)], "method": "ewc_dc"}
    return Result(Cell(Path(), "fifty", order, 0, "ewc_dc"), told, records)


def test_time_late_in_a_sequence_is_that_of_the_first_tasks_with_all_of_k() -> None:
    runs = [long(lambda n: min(n, 7) + 0.001 * n, lambda n: 1000 + n, order) for order in (0, 1)]
    claim = claims.flat(runs, "ewc_dc")
    assert claim.found.startswith("1.01")
    assert claim.verdict == SHOWN
    assert claims.flat([long(float, float, order) for order in (0, 1)], "ewc_dc").verdict == REFUTED
    assert claims.flat([], "ewc_dc").verdict == NO_RUNS


def test_a_single_long_run_is_judged_by_its_tasks() -> None:
    even, uneven = (lambda n: 7 + 0.01 * (n % 3)), (lambda n: 7 + 3 * (n * n % 7))
    assert claims.flat([long(even, float)], "ewc_dc").verdict == SHOWN
    assert claims.flat([long(lambda n: n + 0.1 * (n % 3), float)], "ewc_dc").verdict == REFUTED
    assert claims.flat([long(uneven, float)], "ewc_dc").verdict == OPEN


def test_an_adapter_that_grows_by_more_than_embeddings_is_told() -> None:
    assert claims.constant([long(float, lambda n: 10_000 + 10 * n)], "ewc_dc").verdict == SHOWN
    assert claims.constant([long(float, lambda n: 10_000 * n)], "ewc_dc").verdict == REFUTED


def test_the_table_names_every_expectation_even_without_runs() -> None:
    table = claims.section([], [])
    assert len(table.splitlines()) == 2 + 8 + 8 + 8 + 4
    assert table.count(f"| {NO_RUNS} |") == 28
