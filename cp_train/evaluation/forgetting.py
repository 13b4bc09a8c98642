"""The forgetting matrix of a lineage: what each version of a branch still knows of each concept, from its own figures.

a_ij is the share of concept j's pictures that diffusion-classifier scores put right with version i: of its own images
in the version that learned it, of its parent's drawings later, for the images are gone by then. Only the concepts that
the gate judged there have a figure (`evidence.MOST` of them), so the matrix has gaps.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NEWEST = 12
"""Versions of a branch that are shown, at most."""
_COLUMNS = 16
_FIGURES = ("dc_accuracy", "similarity", "mmd", "kv")


@dataclass(frozen=True)
class Row:
    """A version and its figures.

    Attributes:
        version: what it is called.
        concept: the one that it learned.
        metrics: as its manifest has them.
    """

    version: str
    concept: str
    metrics: Mapping[str, float]

    def figure(self, concept: str, name: str) -> float | None:
        """`dc_accuracy` and the rest of a concept, where they were measured."""
        if concept == self.concept and name == "dc_accuracy":
            return self.metrics.get(name)
        return self.metrics.get(f"drift.{concept}.{name}")


@dataclass(frozen=True)
class Matrix:
    """Rows of one branch, oldest first, and the concepts that have a figure in one of them, in the order learned."""

    rows: Sequence[Row]
    concepts: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Row], learned: Sequence[str]) -> "Matrix":
        """Of the newest versions and concepts."""
        shown = rows[-NEWEST:]
        known = [name for name in learned if any(row.figure(name, "dc_accuracy") is not None for row in shown)]
        return cls(shown, known[-_COLUMNS:])

    def cells(self) -> list[list[float | None]]:
        """The accuracies, a row for each version."""
        return [[row.figure(name, "dc_accuracy") for name in self.concepts] for row in self.rows]

    def to_csv(self) -> str:
        """Every figure there is, one line for each version and concept; MLflow shows it as a table."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["version", "learned", "concept", *_FIGURES])
        for row in self.rows:
            for name in self.concepts:
                found = [row.figure(name, figure) for figure in _FIGURES]
                if any(value is not None for value in found):
                    texts = ["" if value is None else f"{value:.4g}" for value in found]
                    writer.writerow([row.version, row.concept, name, *texts])
        return out.getvalue()

    def to_markdown(self) -> str:
        """The accuracies as a table."""
        lines = [["version", *(f"`<{name}>`" for name in self.concepts)], ["---"] * (1 + len(self.concepts))]
        for row, cells in zip(self.rows, self.cells(), strict=True):
            lines.append([row.version, *("" if value is None else f"{value:.2f}" for value in cells)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_png(self) -> bytes:
        """The accuracies as a heat map; white is where there is none."""
        import numpy as np
        from matplotlib.figure import Figure

        size = (2.2 + 0.62 * len(self.concepts), 1.6 + 0.36 * len(self.rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        values = np.array([[np.nan if v is None else v for v in row] for row in self.cells()], dtype=float)
        image = axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(self.concepts)), [f"<{name}>" for name in self.concepts], rotation=45, ha="right")
        axes.set_yticks(range(len(self.rows)), [row.version for row in self.rows])
        axes.set_ylabel("version")
        axes.set_title("pictures put right (DC accuracy)", fontsize=9)
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
        figure.colorbar(image, ax=axes)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
        return out.getvalue()
