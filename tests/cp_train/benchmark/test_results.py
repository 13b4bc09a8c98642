"""Figures of a run, from records made by hand."""

import csv
import math
from pathlib import Path

import pytest
import torch

from cp_train.benchmark import doubts, results, sweep
from cp_train.benchmark.results import LEADING, Result
from cp_train.benchmark.store import Cell, Record
from cp_train.benchmark.tables import MAIN, compared, differences, means, number, shown
from cp_train.evaluation.statistics import Interval

E1, E2 = torch.eye(2).unsqueeze(1)
"""Two directions at right angles, as one picture each: MMD x1000 between them is 6000."""
APART = 1000 * (4 + 4 - 2 * 1)


def record(task: int, *, last: bool, losses: list[float], **features: torch.Tensor) -> Record:
    figures = {
        "losses": losses,
        "drawn": [],
        "dc": [1.0, 0.5][:task],
        "seconds": 10.0 * task,
        "cpu_seconds": 5.0,
        "peak_mb": 100.0 * task,
        "trained": 10,
        "stored": 20 * task,
        "kept": 30 * task,
        "unet": 1000,
        "clip_t": {"1": 0.2, "2": 0.4} if last else {},
    }
    named = {name.replace("_", "/"): value for name, value in features.items()}
    return Record(figures, named | ({"generic": E1, "generic_before": E1} if last else {}))


def result(label: str = "ewc", order: int = 0, seed: int = 0) -> Result:
    """Concept 1 was drawn perfectly, then as something else; concept 2 is drawn half right at the end."""
    half = torch.cat([E1, E2])
    first = record(1, last=False, losses=[0.25], real_1=E1, trained_1=E1, unseen_1=E1)
    last = record(
        2,
        last=True,
        losses=[0.75, 0.5],
        real_1=E1,
        real_2=E2,
        trained_1=E2,
        trained_2=half,
        unseen_1=E1,
        unseen_2=E2,
    )
    told = {"concepts": ["a", "b"], "learning": {"loop.steps": 3}, "method": label}
    return Result(Cell(Path(), "six", order, seed, label), told, {1: first, 2: last})


def test_the_figures_of_a_run_by_hand() -> None:
    row = result().row()
    # E2 against {E1, E2}: 4 + (4 + 4 + 1 + 1) / 4 - 2 * (1 + 4) / 2
    half = 1000 * (4 + 2.5 - 5)
    assert row["A_MMD"] == pytest.approx((APART + half) / 2)
    assert row["F_MMD"] == pytest.approx(APART)
    assert row["A_MMD_learned"] == pytest.approx(half / 2)
    assert row["A_MMD_last"] == pytest.approx(half)
    assert (row["A_MMD_unseen"], row["F_MMD_unseen"]) == (0, 0)
    assert row["clip_i"] == pytest.approx((0 + 0.5) / 2)
    assert row["clip_i_learned"] == pytest.approx((1 + 0.5) / 2)
    assert row["clip_t"] == pytest.approx(0.3)
    assert row["dc_accuracy"] == 0.75
    assert row["base_drift"] == 0
    assert row["base_similarity"] == 1
    assert row["loss"] == pytest.approx(0.625)
    assert row["loss_rise"] == pytest.approx(0.5)
    assert row["seconds_per_task"] == 15
    assert row["peak_memory_mb"] == 200
    assert (row["trained_percent"], row["stored_percent"], row["kept_percent"]) == (1, 4, 6)
    assert row["KID"] is None


def test_kid_pools_the_runs_and_counts_each_concepts_references_once() -> None:
    runs = []
    for order in range(50):
        run = result(order=order)
        runs += [Result(run.cell, {**run.told, "concepts": [f"a{order}", f"b{order}"]}, run.records)]
    assert results.pooled_kid(runs[:49]) is None
    assert results.pooled_kid(runs[:49] * 2) is None, "98 references, whatever the runs"
    pooled = results.pooled_kid(runs)
    # 50 E1 and 50 E2 against 50 E1 and 100 E2; k is 8 of the same direction, else 1
    own = (49 * 8 + 50) / 99
    other = (50 * 49 * 8 + 100 * 99 * 8 + 2 * 50 * 100) / (150 * 149)
    assert pooled == pytest.approx(1000 * (own + other - 2 * 4.5))


def test_the_table_has_the_promised_columns_first_and_empty_places(tmp_path: Path) -> None:
    results.write([result("ewc"), result("kv", seed=1)], tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(LEADING)] == LEADING
    assert [(row["method"], row["setup"], row["order"], row["seed"]) for row in rows] == [
        ("ewc", "six", "0", "0"),
        ("kv", "six", "0", "1"),
    ]
    assert float(rows[0]["F_MMD"]) == APART
    assert rows[0]["KID"] == ""


def test_both_of_a_pair_are_seen_where_they_are_the_nearest_two() -> None:
    run = result()
    third = torch.tensor([[0.6, 0.8]])
    run.last.features["pair/1-2"] = torch.cat([third, third])
    run.last.features["real_pair/1-2"] = third
    row = run.row()
    assert row["pair_both"] == row["pair_both_real"] == 1
    assert row["pair_MMD"] == pytest.approx(0, abs=1e-4)


def test_means_and_differences_of_runs_of_the_same_order_and_seed() -> None:
    rows = [
        {"method": label, "order": order, "seed": 0, "A_MMD": value}
        for label, values in {"finetune": [10.0, 20.0, 30.0], "kv": [9.0, 19.0, 29.0]}.items()
        for order, value in enumerate(values)
    ]
    assert "| `finetune` | 3 | 20 ± 25 |" in means(rows, MAIN)
    assert "| `kv` | 3 | **-1 ± 0** |" in differences(rows, MAIN, "finetune")
    again = [*rows, *({**row, "seed": 1} for row in rows)]
    assert "| `finetune` | 6 | 20 ± 25 |" in means(again, MAIN), "a second seed is no other concept"


def test_means_of_different_runs_do_not_stand_side_by_side() -> None:
    def rows(label: str, values: list[float]) -> list[results.Row]:
        return [{"method": label, "order": n, "seed": 0, "A_MMD": value} for n, value in enumerate(values)]

    some = rows("ewc", [10.0, 20.0, 90.0]) + rows("kv", [1.0, 2.0, 9.0])
    assert compared(some, MAIN) == means(some, MAIN)
    table = compared([*some, *rows("joint", [5.0, 6.0])], MAIN)
    first, _, second = table.partition("All methods, on what all of them ran")
    assert "| `ewc` | 3 | 40 ±" in first
    assert "joint" not in first
    assert "(order/seed 0/0, 1/0)" in second
    assert "| `ewc` | 2 | 15 ±" in second
    assert "| `joint` | 2 | 5.5 ±" in second


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12345.6, "1.23e+04"), (1234.5, "1234"), (0.1234, "0.123"), (1e-5, "1.00e-05")]
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert shown(None) == "–"
    assert shown(Interval(2.0, None, 1)) == "2"
    assert shown(Interval(2.0, 0.5, 3)) == "2 ± 0.5"


def test_the_sweep_chooses_the_least_of_what_came_to_a_score() -> None:
    def row(label: str, value: float) -> results.Row:
        names = ("A_MMD", "F_MMD", "A_MMD_unseen", "F_MMD_unseen")
        return {"method": label, "setup": "tuning", **dict.fromkeys(names, value)}

    grid = sweep.GRIDS["ewc"]
    rows = [row(sweep.spell("ewc", tried), abs(math.log(tried["weight"]))) for tried in grid]
    rows += [row(sweep.spell("kv", tried), math.nan) for tried in sweep.GRIDS["kv"]]
    rows += [row(sweep.spell("dsc", tried), math.nan if n else 3.0) for n, tried in enumerate(sweep.GRIDS["dsc"])]
    assert sweep.best(rows) == {"ewc": {"weight": 1.0}, "dsc": {"dsc.steps": 25}}
    assert not sweep.at_the_edge("ewc", {"weight": 1.0})
    assert sweep.at_the_edge("dsc", {"dsc.steps": 25})
    assert sweep.score({"A_MMD": 3.0, "F_MMD": None, "A_MMD_unseen": 5.0, "F_MMD_unseen": None}) == 4


def test_every_method_is_swept_with_the_same_budget() -> None:
    from cp_train.methods import METHODS

    assert sweep.GRIDS.keys() == METHODS.keys()
    assert {len(grid) for grid in sweep.GRIDS.values()} == {5}


def test_averaging_trials_narrows_the_scatter() -> None:
    run = result()
    generator = torch.Generator().manual_seed(0)
    for concept in (1, 2):
        logits = torch.randn(200, 8, 3, generator=generator)
        logits[..., concept - 1] += 1.0
        run.last.features[f"dc/{concept}"] = logits
    found = doubts._averaged(run)
    assert [count for count, _, _ in found] == [1, 2, 4, 8]
    spreads, shares = [spread for _, spread, _ in found], [share for _, _, share in found]
    assert spreads[0] / spreads[1] == pytest.approx(2**0.5, rel=0.1), "of independent trials"
    assert spreads[1] / spreads[2] == pytest.approx(2**0.5, rel=0.15), "and few of them look no steadier than they are"
    assert math.isnan(spreads[3])
    assert shares == sorted(shares)
    assert shares[3] > 0.95
