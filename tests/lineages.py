"""Registries on the session's MLflow servers, and versions of a tiny made-up layout to publish in them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import torch

from services.adapter import Layout, Projection, TrainingState, encode, file_refs, new_adapter
from services.lineage import Registry, Verdict, VersionInfo
from services.manifest import BaseRef, Concept, Content, Manifest, Provenance, sha256
from services.objects import ObjectStore
from services.retention import Retention
from services.runs import Server
from services.settings import Settings
from tests.proxy import Proxy

LAYOUT = Layout((Projection("mid.attn2.to_k", 6), Projection("mid.attn2.to_v", 4)), text_width=8)
BASE = BaseRef(id="embedded", revision=sha256(b"base"))
OTHER_BASE = BaseRef(id="other", revision=sha256(b"other"))
Mlflow = Any
"""An `MlflowClient`, which is imported late: it takes two seconds, and its telemetry must be off by then."""


@pytest.fixture
def registry(stack_settings: Settings, stack_store: ObjectStore) -> Registry:
    return Registry(stack_settings, stack_store)


@pytest.fixture
def keeper(stack_settings: Settings, stack_store: ObjectStore) -> Retention:
    return Retention(stack_settings, stack_store)


@pytest.fixture
def mlflow_client(stack_settings: Settings) -> Mlflow:
    """What anybody with access to MLflow can do."""
    return Server(stack_settings.mlflow).client


@pytest.fixture
def lineage() -> str:
    return f"l{uuid4().hex[:12]}"


@pytest.fixture
def mlflow_proxy(stack_settings: Settings) -> Iterator[Proxy]:
    """A network before the server, which can fail."""
    with Proxy(stack_settings.mlflow) as proxy:
        yield proxy


@pytest.fixture
def far_registry(stack_settings: Settings, stack_store: ObjectStore, mlflow_proxy: Proxy) -> Registry:
    """A registry behind a network that fails."""
    return Registry(stack_settings.model_copy(update={"mlflow_uri": mlflow_proxy.endpoint}), stack_store)


def make(
    lineage: str, run_id: str, *, parent: VersionInfo | None = None, seed: int = 0, spoil: float = 0.5
) -> tuple[Manifest, dict[str, bytes]]:
    """A version's manifest and files; its parent's concepts and one more."""
    names = [*(parent.concepts if parent else ()), f"c{len(parent.concepts) if parent else 0}"]
    adapter = new_adapter(LAYOUT, rank=2, seed=seed)
    tokens = {name: torch.full((1, LAYOUT.text_width), spoil) for name in names}
    state = TrainingState(adapter.down_PRD.abs(), adapter.up_KR.abs())
    files = encode(replace(adapter, tokens=tokens), state, LAYOUT)
    concepts = tuple(Concept(name=name, noun="mug", vectors=1) for name in names)
    content = Content(lineage=lineage, base=BASE, rank=2, alpha=2.0, concepts=concepts, files=file_refs(files))
    provenance = Provenance(
        parent=parent.number if parent else None,
        parent_digest=parent.digest if parent else None,
        method="ewc-dc",
        settings={"steps": 3},
        metrics={"loss": 0.5},
        run_id=run_id,
        created="2026-01-01T00:00:00Z",
    )
    return Manifest(digest=content.digest, content=content, provenance=provenance), files


def begin(registry: Registry, lineage: str) -> str:
    return registry.create_run(lineage, name="learn", params={"steps": 3}, tags={"palimpsest.job": "j"})


def fine() -> None:
    """The writer still holds its lease."""


def publish(
    registry: Registry,
    lineage: str,
    *,
    parent: VersionInfo | None = None,
    seed: int = 0,
    spoil: float = 0.5,
    submission: str = "",
    verdict: Verdict = Verdict(passed=True),  # noqa: B008
    check: Callable[[], None] = fine,
    actor: str = "",
) -> VersionInfo:
    run_id = begin(registry, lineage)
    manifest, files = make(lineage, run_id, parent=parent, seed=seed, spoil=spoil)
    key = submission or uuid4().hex
    told = {"submission": key, "job": "job-1", "actor": actor}
    return registry.publish(lineage, run_id, manifest, files, verdict=verdict, check=check, **told)


@pytest.fixture
def chain(registry: Registry, lineage: str) -> list[VersionInfo]:
    """Three versions, the third live."""
    made: list[VersionInfo] = []
    for _ in range(3):
        parent = made[-1] if made else None
        made.append(publish(registry, lineage, parent=parent))
        assert registry.promote(lineage, made[-1].number, expected=parent.number if parent else None)
    return made


def grow(registry: Registry, lineage: str, *parents: int | None) -> list[VersionInfo]:
    """Versions 1, 2, …, each with the parent given; the last is live. Every version adds a concept c<depth>."""
    made: list[VersionInfo] = []
    for parent in parents:
        made.append(publish(registry, lineage, parent=made[parent - 1] if parent else None))
    registry.set_live(lineage, len(made))
    return made


def folder(store: ObjectStore, client: Mlflow, info: VersionInfo) -> str:
    return store.key_of(client.get_model_version(info.lineage, str(info.number)).source)


def fetch(registry: Registry, info: VersionInfo) -> Any:
    return registry.fetch(info.lineage, info.number, layout=LAYOUT, base=BASE)


def numbers(client: Mlflow, lineage: str) -> list[int]:
    """Versions as MLflow has them, whoever made them."""
    return sorted(int(entity.version) for entity in client.search_model_versions(f"name = '{lineage}'"))
