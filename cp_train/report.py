"""What a run's page in MLflow shows beside its parameters and curves, and what makes a version's run its own.

A person who opens the run sees the version it became, the forgetting matrix of its branch (a table and a heat map),
the sample grid of every concept, and every concept over the versions of the branch. It is all made from what the
registry holds; what is not there, or not ours any more, is left out.
"""

import logging
import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

import torch

from cp_train.evaluation.forgetting import NEWEST, Matrix, Row
from cp_train.evaluation.timeline import Sheet, over_versions
from services.describe import describe_run
from services.errors import NotFoundError, PalimpsestError, RefusedError
from services.lineage import Registry, VersionInfo
from services.machine import revision
from services.manifest import Manifest
from services.versions import TAG

log = logging.getLogger("palimpsest.job")

SAMPLES = "samples/concepts.png"
"""Where a run keeps its sample grid."""
HEAT_MAP, TABLE = "forgetting/matrix.png", "forgetting/matrix.csv"
_THIS = "this"
_CONCEPTS = 24  # of a version, that are shown over its branch; the newest


@dataclass(frozen=True)
class Report:
    """What was made for one run.

    Attributes:
        matrix: of the branch and this version.
        pictures: whether sample grids were kept.
    """

    matrix: Matrix
    pictures: bool


def environment(device: torch.device) -> dict[str, str]:
    """Tags of a run that say what it was made with: this process's Palimpsest, Python, libraries and machine.

    Args:
        device: that learns; of a GPU its name and its CUDA are told.
    """
    found = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "ray", "mlflow")}
    found |= {"palimpsest": revision(), "python": platform.python_version()}
    found |= {"system": platform.platform(), "cpus": str(os.cpu_count()), "device": device.type}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return {f"{TAG}environment.{name}": value for name, value in found.items()}


def peak_memory() -> dict[str, float]:
    """Metrics: the most memory that this process held so far, and that it held on its GPU, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        found["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def put_report(registry: Registry, run_id: str, manifest: Manifest, parent: VersionInfo | None, grid: bytes) -> Report:
    """Write a run's pictures and tables, before its version is published; it may be repeated.

    Args:
        registry: has the branch.
        run_id: the run.
        manifest: of the version to be.
        parent: the version that it was learned on.
        grid: its sample grid, a PNG; empty: pictures are not wanted.

    Raises:
        UnavailableError: MLflow or the store does not answer.
    """
    branch = list(_branch(registry, parent))
    names = [concept.name for concept in manifest.content.concepts]
    rows = [Row(str(info.number), info.concept, metrics) for info, metrics in branch]
    matrix = Matrix.of([*rows, Row(_THIS, names[-1], manifest.provenance.metrics)], names)
    files = {TABLE: matrix.to_csv().encode()}
    if matrix.concepts:  # else the version was not sound enough to be judged
        files[HEAT_MAP] = matrix.to_png()
    if grid:
        sheets = [*_sheets(registry, branch), Sheet(_THIS, names, grid)]
        pages = {name: over_versions(sheets, name) for name in names[-_CONCEPTS:]}
        files |= {SAMPLES: grid} | {f"samples/over-versions/{name}.jpg": page for name, page in pages.items() if page}
    for path, data in files.items():
        registry.put_artifact(run_id, path, data)
    return Report(matrix, bool(grid))


def describe(registry: Registry, version: VersionInfo, report: Report) -> None:
    """Write the description of a version's run; an outage leaves it out."""
    names = version.concepts[-_CONCEPTS:] if report.pictures else ()
    page = describe_run(
        version,
        matrix=report.matrix.to_markdown(),
        heat_map=HEAT_MAP if report.matrix.concepts else "",
        grid=SAMPLES if report.pictures else "",
        timelines={name: f"samples/over-versions/{name}.jpg" for name in names},
    )
    try:
        registry.describe_run(version.run_id, page)
    except PalimpsestError as error:
        log.warning("the run's page in MLflow has no description: %s", error.message)


def _branch(registry: Registry, newest: VersionInfo | None) -> Iterator[tuple[VersionInfo, Mapping[str, float]]]:
    """The last versions of a branch and their figures, oldest first; what is not there any more is left out."""
    if newest is None:
        return
    known = {info.number: info for info in registry.versions(newest.lineage)}
    found: list[VersionInfo] = []
    info: VersionInfo | None = newest
    while info is not None and len(found) < NEWEST - 1:
        found.append(info)
        info = known.get(info.parent or 0)
    for info in reversed(found):
        with suppress(NotFoundError, RefusedError):
            yield info, registry.manifest(info.lineage, info.number).provenance.metrics


def _sheets(registry: Registry, branch: list[tuple[VersionInfo, Mapping[str, float]]]) -> Iterator[Sheet]:
    for info, _ in branch:
        with suppress(NotFoundError, RefusedError):  # pictures were not wanted then, or are elsewhere
            yield Sheet(str(info.number), info.concepts, registry.get_artifact(info.run_id, SAMPLES))
