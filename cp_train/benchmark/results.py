"""From what was kept of the runs to `results.csv`: one row a run.

With N tasks, R_j the reference features of concept j and G_{n,j} those of its pictures drawn after task n:

    A_MMD = mean_j MMD(R_j, G_{N,j})                 lower: better drawn at the end
    F_MMD = mean_{j<N} MMD(G_{j,j}, G_{N,j})         lower: less forgotten

`_unseen`: the same under prompts that nobody trained on. A figure that a run does not have is empty: F_MMD of what
learned all at once, KID of fewer than 100 pictures.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cp_train.benchmark.setups import SETUPS
from cp_train.benchmark.store import Cell, Record, cells
from cp_train.evaluation.distances import kid, mmd, similarity
from cp_train.evaluation.statistics import Run
from cp_train.methods import METHODS

LEADING = (
    "method",
    "setup",
    "order",
    "seed",
    "A_MMD",
    "F_MMD",
    "KID",
    "clip_i",
    "clip_t",
    "dc_accuracy",
    "base_drift",
    "seconds_per_task",
)
"""The first columns; every other figure follows."""
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Result:
    """A run that is done, with all its tasks' records."""

    cell: Cell
    told: Mapping[str, Any]
    records: Mapping[int, Record]

    @property
    def concepts(self) -> list[str]:
        """Names of the concepts, in the order learned."""
        return list(self.told["concepts"])

    @property
    def count(self) -> int:
        """N, the number of concepts."""
        return len(self.concepts)

    @property
    def last(self) -> Record:
        """The record after the last task."""
        return self.records[self.count]

    @cached_property
    def real(self) -> dict[int, Tensor]:
        """Reference features of each concept."""
        return {number: self.last.features[f"real/{number}"] for number in range(1, self.count + 1)}

    @cached_property
    def ends(self) -> dict[int, Tensor]:
        """Features of each concept's pictures after the last task, under the training prompts."""
        return {number: self.last.features[f"trained/{number}"] for number in range(1, self.count + 1)}

    def drawn(self, task: int, concept: int, kind: str) -> Tensor | None:
        """Features of one cell, `trained`, `unseen` or `glimpse`; None if it was not drawn then."""
        record = self.records.get(task)
        return None if record is None else record.features.get(f"{kind}/{concept}")

    def row(self) -> Row:
        """Its row of `results.csv`."""
        cell = self.cell
        figures = {**_mmds(self), **_losses(self), **_ends(self), **_pairs(self), **_costs(self)}
        known = {"method": cell.label, "setup": cell.setup, "order": cell.order, "seed": cell.seed}
        return {**known, **figures, "concepts": self.count, "steps": self.told["learning"]["loop.steps"]}


def load(root: Path) -> list[Result]:
    """Every finished run of a comparison's folder, by setup and method in the order in which these are listed."""
    found = [result for cell in cells(root) if (result := load_one(cell)) is not None]
    setups, methods = list(SETUPS), list(METHODS)
    return sorted(found, key=lambda r: (setups.index(r.cell.setup), methods.index(r.told["method"])))


def load_one(cell: Cell) -> Result | None:
    """A run, or None while its last task is not kept."""
    told = cell.told()
    count = len(told["concepts"])
    if not cell.done(count):
        return None
    return Result(cell, told, {n: cell.record(n) for n in range(1, count + 1) if cell.done(n)})


def write(results: Sequence[Result], path: Path) -> list[Row]:
    """Write `results.csv` and return its rows."""
    rows = [result.row() for result in results]
    columns = list(dict.fromkeys([*LEADING, *(name for row in rows for name in row)]))
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
    partial.replace(path)
    return rows


def _shown(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _mmds(result: Result) -> Row:
    row: Row = {}
    count, real = result.count, result.real
    for kind, suffix in (("trained", ""), ("unseen", "_unseen")):
        ends = {j: result.last.features[f"{kind}/{j}"] for j in real}
        first = {j: drawn for j in real if (drawn := result.drawn(j, j, kind)) is not None}
        row[f"A_MMD{suffix}"] = _mean([mmd(real[j], ends[j]) for j in real])
        row[f"F_MMD{suffix}"] = _mean([mmd(first[j], ends[j]) for j in first if j < count])
        row[f"A_MMD_learned{suffix}"] = _mean([mmd(real[j], first[j]) for j in first])
        row[f"A_MMD_last{suffix}"] = mmd(real[count], ends[count])
    return row


def _losses(result: Result) -> Row:
    """Fixed-noise denoising losses: right after learning, at the end, and how much the earlier concepts' rose."""
    end = result.last.figures["losses"]
    first = [result.records[j].figures["losses"][-1] for j in range(1, result.count) if j in result.records]
    rise = [after - before for before, after in zip(first, end, strict=False)] if first else []
    return {"loss": _mean(end), "loss_rise": _mean(rise)}


def _ends(result: Result) -> Row:
    last, real = result.last, result.real
    own = {j: drawn for j in real if (drawn := result.drawn(j, j, "trained")) is not None}
    agreement = list(last.figures.get("clip_t", {}).values())
    before, after = last.features["generic_before"], last.features["generic"]
    return {
        "KID": pooled_kid([result]),
        "clip_i": _mean([similarity(real[j], drawn) for j, drawn in result.ends.items()]),
        "clip_i_learned": _mean([similarity(real[j], g) for j, g in own.items()]),
        "clip_t": _mean(agreement),
        "dc_accuracy": _mean(last.figures["dc"]),
        "base_drift": mmd(before, after),
        "base_similarity": (before * after).sum(1).mean().item(),
    }


def pooled_kid(results: Sequence[Result]) -> float | None:
    """KID of all runs' pictures at the end against their concepts' references; None of fewer than 100.

    A concept that several runs learned has its references counted once: the estimator takes pictures to be different.
    """
    real = {name: result.real[number] for result in results for number, name in enumerate(result.concepts, 1)}
    drawn = [features for result in results for features in result.ends.values()]
    return kid(torch.cat(list(real.values())), torch.cat(drawn))


def _pairs(result: Result) -> Row:
    """Two concepts in one prompt: distance to composed pictures, and how often both are the two it looks like most."""
    features = result.last.features
    names = [name.partition("/")[2] for name in features if name.startswith("pair/")]
    if not names:
        return {}
    centres_CD = torch.stack([result.real[j].mean(0) for j in range(1, result.count + 1)])

    def both(kind: str) -> float | None:
        return _mean([_both_seen(features[f"{kind}/{name}"], centres_CD, name) for name in names])

    return {
        "pair_MMD": _mean([mmd(features[f"real_pair/{name}"], features[f"pair/{name}"]) for name in names]),
        "pair_both": both("pair"),
        "pair_both_real": both("real_pair"),
    }


def _both_seen(features_ND: Tensor, centres_CD: Tensor, name: str) -> float:
    wanted = {int(number) - 1 for number in name.split("-")}
    nearest_N2 = (features_ND @ centres_CD.T).topk(2).indices
    return sum(set(pair) == wanted for pair in nearest_N2.tolist()) / len(features_ND)


def _costs(result: Result) -> Row:
    figures = [record.figures for record in result.records.values()]

    def total(name: str) -> float:
        return math.fsum(task[name] for task in figures)

    last = result.last.figures
    return {
        # Per concept: what learns all at once has one task for all of them.
        "seconds_per_task": total("seconds") / result.count,
        "cpu_seconds_per_task": total("cpu_seconds") / result.count,
        "peak_memory_mb": max(task["peak_mb"] for task in figures),
        "trained_percent": 100 * last["trained"] / last["unet"],
        "stored_percent": 100 * last["stored"] / last["unet"],
        "kept_percent": 100 * last["kept"] / last["unet"],
    }


def run_of(row: Row) -> Run:
    """Order and seed: what rows that are compared with each other have in common."""
    return row["order"], row["seed"]


def column(rows: Sequence[Row], label: str, name: str) -> dict[Run, float]:
    """One figure of a contender's rows by (order, seed), of those that have it."""
    found = {run_of(row): row.get(name) for row in rows if row["method"] == label}
    return {run: float(value) for run, value in found.items() if value is not None}
