"""Versions that no job learned, in the real registry: for measurements, and for tests."""

import time
from uuid import uuid4

from services.adapter import Adapter, Layout, TrainingState, encode, file_refs
from services.lineage import Registry
from services.manifest import BaseRef, Concept, Content, Manifest, Provenance
from services.versions import Verdict, VersionInfo


def publish(
    registry: Registry, lineage: str, adapter: Adapter, layout: Layout, base: BaseRef, *, passed: bool = True
) -> VersionInfo:
    """One more version of a lineage, without a parent; `passed` is its gate's verdict. No alias is moved.

    Raises:
        UnavailableError: MLflow or the store does not answer.
    """
    run_id = registry.create_run(lineage, name="learn", params={}, tags={})
    files = encode(adapter, TrainingState(adapter.down_PRD.abs(), adapter.up_KR.abs()), layout)
    content = Content(
        lineage=lineage,
        base=base,
        rank=adapter.rank,
        alpha=adapter.alpha,
        concepts=tuple(Concept(name=name, noun=name, vectors=len(rows)) for name, rows in adapter.tokens.items()),
        files=file_refs(files),
    )
    origin = Provenance(
        parent=None,
        parent_digest=None,
        method="finetune",
        settings={},
        metrics={},
        run_id=run_id,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    return registry.publish(
        lineage,
        run_id,
        Manifest(digest=content.digest, content=content, provenance=origin),
        files,
        submission=uuid4().hex,
        verdict=Verdict(passed=passed),
        job="",
        check=lambda: None,
    )
