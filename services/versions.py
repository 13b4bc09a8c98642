"""What the registry says of one version, and the tags of an MLflow model version that say it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.manifest import Manifest

TAG = "palimpsest."
"""What the names of our tags begin with."""
DELETED_MARK = f"{TAG}deleted"
"""Tag of a version that is being deleted: from then on nobody sees it."""


@dataclass(frozen=True)
class Verdict:
    """What the gate said of a version, and why."""

    passed: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class VersionInfo:
    """What the registry says of one version, before its files are read.

    Attributes:
        parent: number of the version it was trained on; None for a first one.
        concepts: names, in the order learned.
        base_revision: digest of the base model that it belongs to.
        created: when it was registered, UTC.
        promoted: it is `live`, or was.
        concept: the one that it added.
        images: digest of that concept's images, and `intake` the id under which they were held; empty if not known.
    """

    lineage: str
    number: int
    parent: int | None
    digest: str
    concepts: tuple[str, ...]
    method: str
    base_revision: str
    run_id: str
    created: datetime
    gate_passed: bool
    gate_reasons: tuple[str, ...]
    promoted: bool
    aliases: tuple[str, ...]
    concept: str = ""
    parent_digest: str = ""
    images: str = ""
    intake: str = ""


def tags_of(
    manifest: Manifest, *, submission: str, verdict: Verdict, job: str, intake: str = "", images: str = ""
) -> dict[str, str]:
    """Everything that a version's tags say from its first moment on; `promoted` comes later."""
    origin = manifest.provenance
    tags = {
        "digest": manifest.digest,
        "concepts": json.dumps([concept.name for concept in manifest.content.concepts]),
        "concept": manifest.content.concepts[-1].name if manifest.content.concepts else "",
        "method": origin.method,
        "base": manifest.content.base.id,
        "base_revision": manifest.content.base.revision,
        "submission": submission,
        "gate": "passed" if verdict.passed else "failed",
        "gate_reasons": json.dumps(verdict.reasons),
        "job": job,
        "intake": intake,
        "images": images,
        "parent": "" if origin.parent is None else str(origin.parent),
        "parent_digest": origin.parent_digest or "",
    }
    tags = {key: value for key, value in tags.items() if value or key == "job"}
    return {f"{TAG}{key}": value for key, value in tags.items()}


def concepts_of(entity: Any) -> tuple[str, ...]:
    """Names of the concepts that a version of MLflow's knows, in the order in which they were learned.

    Raises:
        KeyError, ValueError, TypeError: its tags do not say.
    """
    return tuple(map(str, json.loads(entity.tags[f"{TAG}concepts"])))


def info_of(entity: Any, aliases: Mapping[str, int]) -> VersionInfo | None:
    """What MLflow says of a version, or None if it lacks what `publish` writes, or is being deleted."""
    tags = {key.removeprefix(TAG): value for key, value in entity.tags.items() if key.startswith(TAG)}
    if DELETED_MARK in entity.tags:
        return None
    try:
        number = int(entity.version)
        return VersionInfo(
            lineage=entity.name,
            number=number,
            parent=int(tags["parent"]) if "parent" in tags else None,
            digest=tags["digest"],
            concepts=concepts_of(entity),
            method=tags["method"],
            base_revision=tags["base_revision"],
            run_id=entity.run_id,
            created=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
            gate_passed=tags["gate"] == "passed",
            gate_reasons=tuple(map(str, json.loads(tags["gate_reasons"]))),
            promoted="promoted" in tags,
            aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
            **{name: tags.get(name, "") for name in ("concept", "parent_digest", "images", "intake")},
        )
    except (KeyError, ValueError, TypeError):
        return None
