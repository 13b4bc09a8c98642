"""`GET /v1/lineages/{L}` and `PUT /v1/lineages/{L}/live`."""

from dataclasses import asdict

from fastapi import APIRouter, Request

from cp_serve.guard import permit
from cp_serve.routes.access import Name, house, registry_call
from cp_serve.schemas import Canary, Lineage, LiveRequest, LiveResponse, Version
from services.errors import ConflictError, RefusedError
from services.lineage import CANDIDATE, LIVE, Registry, VersionInfo
from services.manifest import check_name

router = APIRouter(prefix="/v1/lineages", tags=["lineages"])
_PATIENCE = 60.0
"""Seconds that the replicas may take to load a version."""


@router.get("/{lineage}")
async def get_lineage(lineage: Name, request: Request) -> Lineage:
    """The tree of versions, with what their jobs measured."""
    check_name(lineage, "lineage")
    permit(request, lineage)
    registry = house(request).registry
    return await registry_call(lambda: _tree(registry, lineage))


@router.put("/{lineage}/live")
async def put_live(lineage: Name, body: LiveRequest, request: Request) -> LiveResponse:
    """Promote, roll back, or try a version on a share of the requests.

    Every denoiser that answers loads and verifies the version first, so that serving follows within seconds.
    """
    check_name(lineage, "lineage")
    actor = permit(request, lineage, "owner").name
    home = house(request)
    await home.replicas.everywhere("load", lineage, body.version, patience=_PATIENCE)
    moved = await registry_call(lambda: _move(home.registry, lineage, body, actor))
    home.replicas.hint()
    return moved


def _move(registry: Registry, lineage: str, body: LiveRequest, actor: str) -> LiveResponse:
    previous = registry.aliases(lineage).get(LIVE)
    if body.canary_percent is not None:
        _check_trial(registry.version(lineage, body.version), previous)
        registry.set_canary(lineage, body.version, body.canary_percent, actor=actor, reason=body.reason)
    else:
        registry.set_live(lineage, body.version, actor=actor, reason=body.reason)
        registry.end_canary(lineage, actor=actor, reason=body.reason)
    live = previous if body.canary_percent is not None else body.version
    return LiveResponse(lineage=lineage, live=live, previous=previous, canary=_canary(registry, lineage))


def _check_trial(info: VersionInfo, live: int | None) -> None:
    """Raise `ConflictError` if nothing could draw the rest, `RefusedError` if the gate would end the trial at once."""
    if live is None:
        raise ConflictError(f"`{info.lineage}` has no live version to draw the rest: promote one first.")
    if not info.gate_passed:
        why = "; ".join(info.gate_reasons) or "no reasons are given"
        raise RefusedError(f"Version {info.number} failed its gate ({why}): it may go live, but gets no share.")


def _canary(registry: Registry, lineage: str) -> Canary | None:
    found = registry.canary(lineage)
    return Canary(version=found.number, percent=found.percent) if found else None


def _tree(registry: Registry, lineage: str) -> Lineage:
    infos, metrics = registry.versions(lineage), registry.metrics(lineage)
    versions = [_version(info, metrics.get(info.run_id, {})) for info in infos]
    aliases = {alias: version.number for version in versions for alias in version.aliases}
    return Lineage(
        lineage=lineage,
        live=aliases.get(LIVE),
        candidate=aliases.get(CANDIDATE),
        canary=_canary(registry, lineage),
        versions=versions,
    )


def _version(info: VersionInfo, metrics: dict[str, float]) -> Version:
    fields = asdict(info) | {"created": int(info.created.timestamp()), "metrics": metrics}
    return Version.model_validate({name: fields[name] for name in Version.model_fields})
