"""What many judged updates say of the gate: a table of all figures, and where its limits could be.

Limits are proposed from the even chains alone: half as far again from "nothing changed" as the worst honest figure. The
odd chains then tell how these do, and how the settings' own do.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from cp_train.evaluation.gate import Limits
from services.lineage import Verdict
from services.settings import Settings

HONEST = "honest"
KINDS = ("learning rates x100", "shuffled weights")
_ROOM = 1.5
_NONE = math.nan


@dataclass(frozen=True)
class Figure:
    """One of the gate's limits, and the metrics that it is held against.

    Attributes:
        name: of the limit.
        ending: of the metrics' names, behind `drift.<concept>` where there is one.
        ideal: what it is where nothing changed.
        least: whether the limit is the least that is still good, and not the most.
    """

    name: str
    ending: str
    ideal: float = 0.0
    least: bool = False

    def worst(self, values: Iterable[float]) -> float:
        """The one furthest from good; NaN if there is none."""
        return (min if self.least else max)(values, default=_NONE)

    def mildest(self, values: Iterable[float]) -> float:
        """The one nearest to good; NaN if there is none."""
        return (max if self.least else min)(values, default=_NONE)

    def keeps(self, value: float, limit: float) -> bool:
        """Whether a value is still good enough; one that is missing is."""
        return math.isnan(value) or (value >= limit if self.least else value <= limit)

    def with_room(self, worst: float) -> float:
        """A limit beyond the worst honest value."""
        return self.ideal + _ROOM * (worst - self.ideal)


FIGURES = (
    Figure("kv", ".kv"),
    Figure("mmd", ".mmd"),
    Figure("similarity", ".similarity", ideal=1.0, least=True),
    Figure("dc_drop", ".dc_drop"),
    Figure("base_kv", "base_drift.kv"),
    Figure("base_mmd", "base_drift.mmd"),
    Figure("base_similarity", "base_drift.similarity", ideal=1.0, least=True),
    Figure("new_similarity", "new.similarity", ideal=1.0, least=True),
    Figure("new_loss", "new.loss"),
)


@dataclass(frozen=True, kw_only=True)
class Update:
    """One judged update; a figure is NaN where nothing was measured.

    Attributes:
        earlier: concepts that its parent knew.
        passed, reasons: the gate's own verdict, with the limits of that time.
        seconds: that judging took, drawing included.
    """

    chain: int
    kind: str
    concept: str
    earlier: int
    passed: bool
    reasons: str
    seconds: float
    kv: float = _NONE
    mmd: float = _NONE
    similarity: float = _NONE
    dc_drop: float = _NONE
    base_kv: float = _NONE
    base_mmd: float = _NONE
    base_similarity: float = _NONE
    new_similarity: float = _NONE
    new_loss: float = _NONE

    @classmethod
    def of(cls, *, verdict: Verdict, metrics: Mapping[str, float], **facts: object) -> Self:
        """With the worst of each figure."""
        found = {figure.name: figure.worst(_measured(metrics, figure)) for figure in FIGURES}
        return cls(passed=verdict.passed, reasons="; ".join(verdict.reasons), **facts, **found)  # type: ignore[arg-type]

    @property
    def honest(self) -> bool:
        """Whether it should pass."""
        return self.kind == HONEST

    @property
    def sets(self) -> bool:
        """Whether limits may be set by it; by the others they are only reported on."""
        return self.chain % 2 == 0

    def figure(self, figure: Figure) -> float:
        """One of its figures."""
        return float(getattr(self, figure.name))

    def passes(self, limits: Mapping[str, float]) -> bool:
        """Whether it would pass with other limits; one that was not even sound does not."""
        measured = not all(math.isnan(self.figure(figure)) for figure in FIGURES)
        return measured and all(figure.keeps(self.figure(figure), limits[figure.name]) for figure in FIGURES)

    def right(self, limits: Mapping[str, float]) -> bool:
        """Whether the verdict with some limits is what it should be."""
        return self.passes(limits) == self.honest

    def line(self) -> str:
        """For a terminal."""
        figures = "  ".join(f"{figure.name} {self.figure(figure):.3g}" for figure in FIGURES)
        word = "passed" if self.passed else "failed"
        return f"{self.kind} <{self.concept}> after {self.earlier}: {word}  {figures}  {self.seconds:.1f} s"


class Table:
    """Updates in a CSV file, a whole chain at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = [field.name for field in fields(Update)]

    def read(self) -> list[Update]:
        """Everything that was written."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [_parse(row) for row in csv.DictReader(file)]

    def append(self, updates: Sequence[Update]) -> None:
        """Write a chain; a reader sees all of it or nothing."""
        whole = [*self.read(), *updates]
        beside = self.path.with_suffix(".part")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(asdict(update) for update in whole)
        beside.replace(self.path)


def limits_of(settings: Settings) -> dict[str, float]:
    """The settings' limits, by name."""
    return {name: float(value) for name, value in asdict(Limits.of(settings)).items()}


def write_report(updates: Sequence[Update], own: Mapping[str, float]) -> str:
    """`gate.md`, with one's own limits beside those that it proposes."""
    proposed = propose(updates)
    right = sum(update.right(own) for update in updates)
    lines = ["# The gate, on honest and catastrophic updates", ""]
    lines += [f"{right} of {len(updates)} verdicts are right with the settings' limits.", ""]
    lines += ["## Verdicts", "", *_verdicts(updates, own, proposed), "", "## Figures", ""]
    lines += [*_figures(updates, own, proposed), "", "## Proposed limits", ""]
    lines += ["Half as far again from no change as the worst honest figure of the even chains:", "", "```"]
    lines += [f"PALIMPSEST_GATE_{name.upper()}={value:.3g}" for name, value in proposed.items()]
    lines += ["```", "", "## Updates", "", *_updates(updates, own), ""]
    return "\n".join(lines)


def propose(updates: Sequence[Update]) -> dict[str, float]:
    """Limits from the honest updates of the even chains; where nothing was measured, none that matters."""
    honest = [update for update in updates if update.honest and update.sets]
    found = {}
    for figure in FIGURES:
        worst = figure.worst(_values(honest, figure))
        none = -math.inf if figure.least else math.inf
        found[figure.name] = none if math.isnan(worst) else figure.with_room(worst)
    return found


def _measured(metrics: Mapping[str, float], figure: Figure) -> list[float]:
    """A figure's metrics; one that is not a number is as bad as can be."""
    own, bad = figure.ending[0] != ".", -math.inf if figure.least else math.inf
    found = [
        value
        for name, value in metrics.items()
        if (name == figure.ending if own else name.startswith("drift.") and name.endswith(figure.ending))
    ]
    return [bad if math.isnan(value) else value for value in found]


def _values(updates: Iterable[Update], figure: Figure) -> list[float]:
    return [value for update in updates if not math.isnan(value := update.figure(figure))]


def _verdicts(updates: Sequence[Update], own: Mapping[str, float], proposed: Mapping[str, float]) -> list[str]:
    """How many pass, of which kind, with which limits."""
    lines = ["| update | chains | how many | pass, settings' limits | pass, proposed limits |", "|---|---|---|---|---|"]
    for kind in (HONEST, *KINDS):
        for sets, half in ((True, "even, which set limits"), (False, "odd, which report")):
            some = [update for update in updates if update.kind == kind and update.sets == sets]
            passed = [sum(update.passes(limits) for update in some) for limits in (own, proposed)]
            lines.append(f"| {kind} | {half} | {len(some)} | {passed[0]} | {passed[1]} |")
    return lines


def _figures(updates: Sequence[Update], own: Mapping[str, float], proposed: Mapping[str, float]) -> list[str]:
    """The worst honest and the mildest catastrophic value of each figure."""
    head = ["figure", "limit", "proposed", "worst honest, even", "worst honest, odd", *(f"mildest {k}" for k in KINDS)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for figure in FIGURES:
        honest = [[u for u in updates if u.honest and u.sets == half] for half in (True, False)]
        cells = [own[figure.name], proposed[figure.name]]
        cells += [figure.worst(_values(some, figure)) for some in honest]
        cells += [figure.mildest(_values([u for u in updates if u.kind == kind], figure)) for kind in KINDS]
        word = "at least" if figure.least else "at most"
        texts = ["" if math.isnan(value) else f"{value:.3g}" for value in cells]
        lines.append(f"| {figure.name} | {word} {' | '.join(texts)} |")
    return lines


def _updates(updates: Sequence[Update], own: Mapping[str, float]) -> list[str]:
    """Every update, and whether it passes with one's own limits."""
    head = ["chain", "update", "concept", "earlier", "verdict", *(figure.name for figure in FIGURES), "s"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for update in updates:
        figures = ["" if math.isnan(value) else f"{value:.3g}" for value in map(update.figure, FIGURES)]
        word = ("passed" if update.passes(own) else "failed") + ("" if update.right(own) else ", **wrong**")
        facts = [str(update.chain), update.kind, update.concept, str(update.earlier), word]
        lines.append(f"| {' | '.join([*facts, *figures, f'{update.seconds:.1f}'])} |")
    return lines


def _parse(row: Mapping[str, str]) -> Update:
    kinds = {"chain": int, "earlier": int, "kind": str, "concept": str, "reasons": str}
    values = {name: kinds.get(name, float)(value) for name, value in row.items() if name != "passed"}
    return Update(passed=row["passed"] == "True", **values)
