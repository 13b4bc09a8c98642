"""Versions of a real base, published in the real registry as a training job publishes them."""

from collections.abc import Mapping

from cp_serve.bank import Bank
from cp_serve.bench.publish import publish as publish_version
from services.adapter import Adapter
from services.base_model import BaseModel
from services.lineage import Registry, VersionInfo
from services.manifest import BaseRef
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
    info = publish_version(registry, lineage, adapter, base.layout, ref or base.ref, passed=passed)
    if live:
        registry.set_live(lineage, info.number)
    return registry.version(lineage, info.number)


def go_live(bank: Bank, lineage: str, number: int) -> None:
    """Fetch a version and point the lineage at it, as the follower does; what `get` raises changes nothing."""
    bank.get(lineage, number, anew=True)
    bank.point(lineage, number)
