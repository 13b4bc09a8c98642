"""What a replica reads of a lineage, to follow it and to draw."""

from types import SimpleNamespace
from typing import Any

from services.audit import AuditLog
from services.lineage import LIVE, Registry, VersionInfo
from services.objects import open_store
from services.settings import Settings
from tests.lineages import Mlflow


def test_what_a_replica_follows_is_read_without_the_log(
    registry: Registry, stack_settings: Settings, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    no_store: Any = SimpleNamespace()
    replica, log = Registry(stack_settings, no_store), AuditLog(open_store(stack_settings))
    mlflow_client.set_registered_model_alias(lineage, LIVE, "2")
    seen = replica.targets()[lineage]
    assert (seen.live, seen.unrecorded) == (2, True)
    assert replica.resolve(lineage, LIVE) == replica.version(lineage, 2).number == 2
    assert all(entry.via == "job" for entry in log.entries(lineage)), "nobody has written it down yet"
    for _ in range(2):
        registry.record_found(lineage)
        assert [entry.via for entry in log.entries(lineage)].count("found") == 1
    seen = replica.targets()[lineage]
    assert (seen.live, seen.unrecorded) == (2, False)


def test_what_was_live_before_is_told_back_to_where_nothing_was(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    assert list(registry.live_before(lineage, 3)) == [2, 1]
    registry.set_live(lineage, 1)
    assert list(registry.live_before(lineage, 1)) == [3, 2]
    mlflow_client.set_registered_model_alias(lineage, LIVE, "2")
    assert list(registry.live_before(lineage, 2)) == [1, 3], "though the log does not know of this one yet"
    registry.clear_live(lineage)
    registry.set_live(lineage, 3)
    assert list(registry.live_before(lineage, 3)) == []
