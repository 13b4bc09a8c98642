"""Versions of a real base, published in the real registry as a training job publishes them."""

from collections.abc import Mapping
from uuid import uuid4

from services.adapter import Adapter, TrainingState, encode, file_refs
from services.base_model import BaseModel
from services.lineage import Registry, Verdict, VersionInfo
from services.manifest import BaseRef, Concept, Content, Manifest, Provenance
from tests.bases import some_adapter


def adapter_of(base: BaseModel, vectors: Mapping[str, int], *, seed: int = 0) -> Adapter:
    return some_adapter(base.layout, vectors, seed=seed)


def publish(
    registry: Registry,
    lineage: str,
    base: BaseModel,
    adapter: Adapter,
    *,
    live: bool = True,
    ref: BaseRef | None = None,
    passed: bool = True,
) -> VersionInfo:
    """One more version of a lineage; `ref` names another base than the one it fits."""
    run_id = registry.create_run(lineage, name="learn", params={}, tags={})
    files = encode(adapter, TrainingState(adapter.down_PRD.abs(), adapter.up_KR.abs()), base.layout)
    content = Content(
        lineage=lineage,
        base=ref or base.ref,
        rank=adapter.rank,
        alpha=adapter.alpha,
        concepts=tuple(Concept(name=name, noun=name, vectors=len(rows)) for name, rows in adapter.tokens.items()),
        files=file_refs(files),
    )
    provenance = Provenance(
        parent=None,
        parent_digest=None,
        method="finetune",
        settings={},
        metrics={},
        run_id=run_id,
        created="2026-01-01T00:00:00Z",
    )
    manifest = Manifest(digest=content.digest, content=content, provenance=provenance)
    info = registry.publish(
        lineage,
        run_id,
        manifest,
        files,
        submission=uuid4().hex,
        verdict=Verdict(passed=passed),
        job="",
        check=lambda: None,
    )
    if live:
        registry.set_live(lineage, info.number)
    return registry.version(lineage, info.number)
