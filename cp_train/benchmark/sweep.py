"""Hyper-parameters, chosen on concepts that are never reported: as many candidates for every method.

A candidate's score is A_MMD + F_MMD, the mean of trained and unseen prompts, over the runs of the setup `tuning`; the
least wins. F_MMD of what does not learn in turn counts as zero. What a method is composed of is chosen before it: plain
fine-tuning chooses the learning rate of all that continue one LoRA, and only then each its own setting.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cp_train.benchmark.contenders import Contender, depth, spell
from cp_train.benchmark.results import Row, load
from cp_train.evaluation.statistics import Interval, interval
from cp_train.files import write_whole

TUNING = "tuning"
CHOSEN = "chosen.json"
"""What was chosen, in a comparison's folder: method -> settings. A choice stands until the file is deleted."""
_RATES = tuple({"loop.lr": rate} for rate in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3))
_SMALL_RATES = tuple({"loop.lr": rate} for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3))
_LARGE_RATES = tuple({"loop.lr": rate} for rate in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
_LAMBDAS = tuple({"weight": weight} for weight in (1e-3, 1e-2, 1e-1, 1.0, 10.0))
_BESIDE_KV = tuple({"weight": weight} for weight in (1e-4, 1e-3, 1e-2, 1e-1, 1.0))
_CLORA = tuple({"weight": weight} for weight in (1.0, 10.0, 100.0, 1e3, 1e4))
_PROTECTION = tuple({"kv.weight": weight} for weight in (0.1, 0.3, 1.0, 3.0, 10.0))
_STEPS = tuple({"dsc.steps": steps} for steps in (25, 50, 100, 200, 300))
GRIDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "finetune": _RATES,
    "joint": _RATES,
    "per_concept": _RATES,
    "textual_inversion": tuple({"loop.token_lr": rate} for rate in (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)),
    "custom_diffusion": _SMALL_RATES,
    "custom_diffusion_merge": _SMALL_RATES,
    "finetune_vera": _LARGE_RATES,
    "clora": _CLORA,
    "clora_shared": _CLORA,
    "ewc": _LAMBDAS,
    "ewc_dc": _LAMBDAS,
    "ewc_vera": _LAMBDAS,
    "ewc_dc_vera": _LAMBDAS,
    "kv": _PROTECTION,
    "ewc_dc_kv": _BESIDE_KV,
    "dsc_kv": _PROTECTION,
    "dsc_ewc_dc_kv": _PROTECTION,
    "dsc": _STEPS,
    "dsc_ewc": _LAMBDAS,
    "dsc_ewc_dc": _LAMBDAS,
}
"""Method -> what is tried of the one setting that matters most to it: five values each."""


def rounds(contenders: Sequence[Contender]) -> Iterator[list[Contender]]:
    """What competes in place of some methods, and in which rounds: one chooses before the next begins."""

    def first(contender: Contender) -> int:
        return depth(contender.method)

    for _, some in groupby(sorted(contenders, key=first), first):
        yield [candidate for contender in some for candidate in _candidates(contender)]


def _candidates(contender: Contender) -> list[Contender]:
    """One for each value of a method's grid; one that names its settings itself stays as it is."""
    grid = GRIDS[contender.method] if not contender.overrides else ()
    tried = [Contender(spell(contender.method, o), contender.method, tuple(o.items())) for o in grid]
    return tried or [contender]


def score(row: Row) -> float:
    """The criterion of one run; less is better."""
    names = ("A_MMD", "F_MMD", "A_MMD_unseen", "F_MMD_unseen")
    return sum(row[name] or 0.0 for name in names) / 2


def scores(rows: Sequence[Row]) -> dict[str, Interval]:
    """Contender -> its score, of the rows of the sweep."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["setup"] == TUNING:
            found.setdefault(row["method"], []).append(score(row))
    known = {label: interval(values) for label, values in found.items()}
    return {label: mean for label, mean in known.items() if mean is not None}


def best(rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
    """Method -> the winner among its candidates that are there; one that came to no finite score wins nothing."""
    found, chosen = scores(rows), {}
    for method, grid in GRIDS.items():
        tried = {label: o for o in grid if (label := spell(method, o)) in found}
        if tried:
            chosen[method] = tried[min(tried, key=lambda label: found[label].mean)]
    return chosen


def choose(root: Path, methods: Sequence[str]) -> None:
    """Choose for these methods, of those for which nothing was chosen before, and write it down."""
    now = best([result.row() for result in load(root)])
    found = {method: now[method] for method in methods if method in now} | choices(root)
    write_whole(root / CHOSEN, json.dumps(found, indent=1) + "\n")


def choices(root: Path) -> dict[str, Mapping[str, Any]]:
    """What was chosen in a comparison's folder."""
    path = root / CHOSEN
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def at_the_edge(method: str, settings: Mapping[str, Any]) -> bool:
    """Whether a choice is the first or the last value that was tried, so that a better one may lie beyond."""
    grid = GRIDS[method]
    return settings in (grid[0], grid[-1])
