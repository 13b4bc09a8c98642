"""Hyper-parameters, chosen on concepts that are never reported: as many candidates for every method.

A candidate's score is A_MMD + F_MMD, the mean of trained and unseen prompts, over the runs of the setup `tuning`; the
least wins. F_MMD of what does not learn in turn counts as zero.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cp_train.benchmark.contenders import Contender, spell
from cp_train.benchmark.results import Row, load
from cp_train.evaluation.statistics import Interval, interval
from cp_train.files import write_whole

TUNING = "tuning"
_RATES = tuple({"loop.lr": rate} for rate in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3))
_SMALL_RATES = tuple({"loop.lr": rate} for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3))
_LARGE_RATES = tuple({"loop.lr": rate} for rate in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
_LAMBDAS = tuple({"weight": weight} for weight in (1e-3, 1e-2, 1e-1, 1.0, 10.0))
_CLORA = tuple({"weight": weight} for weight in (1.0, 10.0, 100.0, 1e3, 1e4))
_PROTECTION = tuple({"kv.weight": weight} for weight in (0.3, 1.0, 3.0, 10.0, 30.0))
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
    "ewc_dc_kv": _PROTECTION,
    "dsc_kv": _PROTECTION,
    "dsc_ewc_dc_kv": _PROTECTION,
    "dsc": _STEPS,
    "dsc_ewc": _LAMBDAS,
    "dsc_ewc_dc": _LAMBDAS,
}
"""Method -> what is tried of the one setting that matters most to it: five values each."""


def candidates(contenders: Sequence[Contender]) -> list[Contender]:
    """What competes in a sweep in place of some methods; one that names its settings itself stays as it is."""
    found = []
    for contender in contenders:
        grid = GRIDS.get(contender.method, ()) if not contender.overrides else ()
        tried = [Contender(spell(contender.method, o), contender.method, tuple(o.items())) for o in grid]
        found += tried or [contender]
    return found


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
    """Method -> the winner among its candidates, of those methods whose candidates are all there."""
    found, chosen = scores(rows), {}
    for method, grid in GRIDS.items():
        tried = {spell(method, overrides): overrides for overrides in grid}
        if tried.keys() <= found.keys():
            chosen[method] = tried[min(tried, key=lambda label: found[label].mean)]
    return chosen


def choose(root: Path, path: Path) -> None:
    """Write what won, as JSON: method -> settings."""
    chosen = best([result.row() for result in load(root)])
    write_whole(path, json.dumps(chosen, indent=1) + "\n")
