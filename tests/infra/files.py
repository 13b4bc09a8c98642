"""The files of `infra/` as data."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def documents(name: str) -> list[dict[str, Any]]:
    """The YAML documents of a file of `infra/`."""
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def document(name: str) -> dict[str, Any]:
    """The one YAML (or JSON) document of a file of `infra/`."""
    (found,) = documents(name)
    return found


def script(name: str) -> ModuleType:
    """A script of `infra/`, imported."""
    path = INFRA / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kuberay() -> list[dict[str, Any]]:
    """Every resource of `infra/kuberay` that is not generated, the job included."""
    names = [name for name in document("kuberay/kustomization.yaml")["resources"] if name.endswith(".yaml")]
    return [resource for name in [*names, "job.yaml"] for resource in documents(f"kuberay/{name}")]


def pods(resources: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and template of every pod that some resources ask for."""
    for resource in resources:
        kind, spec = resource["kind"], resource.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            yield f"{kind}/{resource['metadata']['name']}", spec["template"]
        cluster = {"RayCluster": spec, "RayService": spec.get("rayClusterConfig")}.get(kind)
        if cluster:
            yield f"{kind}/{resource['metadata']['name']}/head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{kind}/{resource['metadata']['name']}/{group['groupName']}", group["template"]


def compose() -> dict[str, Any]:
    """The compose file, its anchors and merges resolved."""
    return document("compose/compose.yaml")
