"""`GET /v1/models` and `/v1/models/{id}`: lineages and versions in OpenAI's shape."""

from contextlib import suppress

from fastapi import APIRouter, Request

from cp_serve.guard import permit, person_of
from cp_serve.routes.access import Name, house, naming_model, registry_call, split_model
from cp_serve.schemas import Model, ModelList
from services.auth import Person
from services.errors import NotFoundError
from services.lineage import Registry, VersionInfo

router = APIRouter(prefix="/v1/models", tags=["models"])
BASE = Model(id="base", created=0)


@router.get("")
async def list_models(request: Request) -> ModelList:
    """The base, and every lineage and version that the caller may draw with."""
    registry: Registry = house(request).registry
    person = person_of(request)
    return ModelList(data=[BASE, *await registry_call(lambda: _all(registry, person))])


@router.get("/{model}")
async def get_model(model: Name, request: Request) -> Model:
    """One lineage (created with its first version) or one version."""
    lineage, version = split_model(model)
    registry: Registry = house(request).registry
    if lineage == "base":
        return BASE
    with naming_model():
        permit(request, lineage)
        if "@" not in model:
            return (await registry_call(lambda: _lineage(registry, lineage)))[0]
        return _version(await registry_call(lambda: registry.version(lineage, registry.resolve(lineage, version))))


def _all(registry: Registry, person: Person) -> list[Model]:
    found = []
    for lineage in filter(person.right, registry.lineages()):
        with suppress(NotFoundError):  # deleted since
            found += _lineage(registry, lineage)
    return found


def _lineage(registry: Registry, lineage: str) -> list[Model]:
    versions = registry.versions(lineage)
    created = min((int(v.created.timestamp()) for v in versions), default=0)
    return [Model(id=lineage, created=created), *(_version(version) for version in versions)]


def _version(version: VersionInfo) -> Model:
    return Model(id=f"{version.lineage}@{version.number}", created=int(version.created.timestamp()))
