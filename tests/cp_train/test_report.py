"""What a run's page shows, in a real MLflow: from figures and pictures that the branch's versions left."""

import io
import platform
import re
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from cp_train.report import HEAT_MAP, SAMPLES, TABLE, describe, environment, peak_memory, put_report
from services.lineage import Registry, Verdict, VersionInfo
from services.machine import revision
from services.manifest import Manifest
from services.objects import ObjectStore
from services.settings import Settings
from tests.lineages import Mlflow, begin, fine, make, publish

METRICS = {"dc_accuracy": 0.75, "drift.c0.dc_accuracy": 0.5, "drift.c0.similarity": 0.9, "drift.c1.dc_accuracy": 1.0}


def grid(shades: Sequence[int]) -> bytes:
    rows = np.concatenate([np.full((16, 64, 3), shade, np.uint8) for shade in shades])
    out = io.BytesIO()
    Image.fromarray(rows).save(out, "PNG")
    return out.getvalue()


def measured(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update={"metrics": METRICS})})


def reported(
    registry: Registry,
    lineage: str,
    parent: VersionInfo,
    pictures: bytes,
    verdict: Verdict = Verdict(passed=True),  # noqa: B008
) -> VersionInfo:
    """A version that was published with its report."""
    run_id = begin(registry, lineage)
    made, files = make(lineage, run_id, parent=parent)
    manifest = measured(made)
    report = put_report(registry, run_id, manifest, parent, pictures)
    version = registry.publish(
        *(lineage, run_id, manifest, files), submission=run_id, verdict=verdict, job="job-1", check=fine
    )
    describe(registry, version, report)
    return version


def test_a_run_tells_what_its_branch_still_knows(
    registry: Registry, stack_settings: Settings, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    first = publish(registry, lineage)
    registry.put_artifact(first.run_id, SAMPLES, grid([50]))
    second = publish(registry, lineage, parent=first)  # its pictures were not wanted
    publish(registry, lineage, parent=first)  # another branch
    version = reported(registry, lineage, second, grid([60, 120, 200]))

    assert registry.get_artifact(version.run_id, SAMPLES) == grid([60, 120, 200])
    table = registry.get_artifact(version.run_id, TABLE).decode().splitlines()
    assert table == [
        "version,learned,concept,dc_accuracy,similarity,mmd,kv",
        "this,c2,c0,0.5,0.9,,",
        "this,c2,c1,1,,,",
        "this,c2,c2,0.75,,,",
    ], "those before have no figures"
    assert Image.open(io.BytesIO(registry.get_artifact(version.run_id, HEAT_MAP))).format == "PNG"
    heights = [
        Image.open(io.BytesIO(registry.get_artifact(version.run_id, f"samples/over-versions/{name}.jpg"))).height
        for name in ("c0", "c1", "c2")
    ]
    assert heights == [2 * 18, 18, 18], "<c0> by versions 1 and this"

    page = mlflow_client.get_run(version.run_id).data.tags["mlflow.note.content"]
    assert f"[version 4](#/models/{lineage}/versions/4)" in page
    assert "| this | 0.50 | 1.00 | 0.75 |" in page
    sources = re.findall(r"!\[[^]]*\]\((.*?)\)", page)
    assert len(sources) == 5
    for source in sources:
        shown = requests.get(f"{stack_settings.mlflow}/{source}", timeout=60)
        assert Image.open(io.BytesIO(shown.content)).width > 0


def test_a_refused_version_says_why_and_pictures_can_be_left_out(
    registry: Registry, mlflow_client: Mlflow, lineage: str
) -> None:
    first = publish(registry, lineage)
    refused = Verdict(passed=False, reasons=("<c0> changed: MMD 900, at most 600",))
    version = reported(registry, lineage, first, b"", refused)
    page = mlflow_client.get_run(version.run_id).data.tags["mlflow.note.content"]
    assert "The gate refused it: &#60;c0&#62; changed: MMD 900, at most 600." in page
    assert "samples" not in page


def test_the_next_version_shows_the_figures_of_the_one_before(
    registry: Registry, mlflow_client: Mlflow, lineage: str
) -> None:
    version = reported(registry, lineage, publish(registry, lineage), b"")
    later = reported(registry, lineage, version, b"")
    page = mlflow_client.get_run(later.run_id).data.tags["mlflow.note.content"]
    assert "| 2 | 0.50 | 0.75 |  |" in page
    assert "| this | 0.50 | 1.00 | 0.75 |" in page


def test_what_a_run_was_made_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU its name and its CUDA; without one neither."""
    prefix = "palimpsest.environment."
    told = {name.removeprefix(prefix): value for name, value in environment(torch.device("cpu")).items()}
    libraries = {"torch", "diffusers", "transformers", "ray", "mlflow"}
    assert {name: told[name] for name in libraries} == {name: metadata.version(name) for name in libraries}
    assert (told["palimpsest"], told["python"]) == (revision(), platform.python_version())
    assert told.keys() - libraries == {"palimpsest", "python", "system", "cpus", "device"}
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a card that is {device}")
    monkeypatch.setattr("torch.version.cuda", "12.8")
    on_gpu = environment(torch.device("cuda", 1))
    assert [on_gpu[f"{prefix}{name}"] for name in ("device", "gpu", "cuda")] == [
        "cuda",
        "a card that is cuda:1",
        "12.8",
    ]


def test_the_memory_that_a_process_held_is_known() -> None:
    before = peak_memory()["memory_mib"]
    held = np.ones(200 * 2**20, np.uint8)
    assert peak_memory()["memory_mib"] >= max(before, held.nbytes / 2**20)
