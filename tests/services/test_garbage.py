"""What may be collected: abandoned branches, files of versions that never were, deletions that nobody wrote down."""

import pytest

from services.audit import UNKNOWN
from services.errors import BusyError, InputError, NotFoundError, RefusedError
from services.lease import lease
from services.lineage import CANDIDATE, Verdict
from services.objects import ObjectStore, open_store
from services.retention import Garbage, Retention
from services.runs import Server
from services.settings import Settings
from tests.killed import killed
from tests.lineages import Mlflow, begin, fine, grow, make, numbers, publish

NOTHING = Garbage((), (), ())


def test_a_version_that_was_deleted_in_mlflow_itself_is_written_down_and_told(
    keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    _, second, third = grow(keeper, lineage, None, 1, 1)
    keeper.set_live(lineage, 1)
    for number in (2, 3):
        mlflow_client.delete_model_version(lineage, str(number))
    found = keeper.garbage(lineage, days=0)
    assert (found.vanished, set(found.orphans)) == ((2, 3), {second.run_id, third.run_id})
    assert keeper.deleted().get(lineage) is None
    assert keeper.collect(lineage, found, days=0, actor="ada") == found
    assert keeper.deleted()[lineage] == {2, 3}
    told = [(entry.before, entry.actor, entry.via) for entry in keeper.history(lineage) if entry.action == "delete"]
    assert told == [(2, UNKNOWN, "found"), (3, UNKNOWN, "found")]
    assert [key for key in stack_store.list("mlflow/") if second.run_id in key] == []
    assert keeper.garbage(lineage, days=0) == NOTHING


def test_a_killed_collection_has_told_the_replicas_of_what_it_wrote_down(mlflow_server: Settings, lineage: str) -> None:
    settings = mlflow_server.model_copy(update={"lease_seconds": 0.4})
    keeper = Retention(settings, open_store(settings))
    grow(keeper, lineage, None, 1)
    keeper.set_live(lineage, 1)
    Server(settings.mlflow).client.delete_model_version(lineage, "2")
    found = keeper.garbage(lineage, days=30)
    killed(f"after create audit/{lineage}/", lambda: keeper.collect(lineage, found, days=30))
    assert keeper.deleted()[lineage] == {2}
    assert keeper.garbage(lineage, days=30) == NOTHING


def test_an_abandoned_branch_is_collected_after_a_look(keeper: Retention, mlflow_client: Mlflow, lineage: str) -> None:
    grow(keeper, lineage, None, 1, 2, 1)  # 1 -> 2 -> 3 is left for 1 -> 4
    mlflow_client.delete_registered_model_alias(lineage, CANDIDATE) if CANDIDATE in keeper.aliases(lineage) else None
    assert keeper.garbage(lineage, days=30) == NOTHING, "it is young"
    garbage = keeper.garbage(lineage, days=0)
    assert garbage == Garbage((3, 2), (), ())
    assert numbers(mlflow_client, lineage) == [1, 2, 3, 4], "a look deletes nothing"
    assert keeper.collect(lineage, NOTHING, days=0) == NOTHING, "only what was shown is deleted"
    assert keeper.collect(lineage, garbage, days=0) == garbage
    assert numbers(mlflow_client, lineage) == [1, 4]
    assert keeper.garbage(lineage, days=0) == NOTHING


def test_files_of_a_version_that_never_was_are_collected(
    keeper: Retention, stack_store: ObjectStore, lineage: str
) -> None:
    grow(keeper, lineage, None)

    class KilledError(Exception):
        pass

    def killed() -> None:
        raise KilledError

    run_id = begin(keeper, lineage)
    manifest, files = make(lineage, run_id)
    with pytest.raises(KilledError):
        keeper.publish(
            lineage, run_id, manifest, files, submission="s", verdict=Verdict(passed=True), job="j", check=killed
        )
    keeper.put_artifact(run_id, "samples/x.png", b"picture")
    assert keeper.garbage(lineage, days=30).orphans == ()
    garbage = keeper.garbage(lineage, days=0)
    assert garbage == Garbage((), (), (run_id,))
    keeper.collect(lineage, garbage, days=0)
    assert [key for key in stack_store.list("mlflow/") if run_id in key] == []
    assert keeper.garbage(lineage, days=0) == NOTHING


def test_what_a_lineages_first_job_left_is_collected_though_it_registered_nothing(
    keeper: Retention, stack_store: ObjectStore, lineage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(_: str) -> None:
        raise KilledError

    with pytest.raises(NotFoundError, match="There is no lineage"):
        keeper.garbage(lineage, days=0)
    run_id = begin(keeper, lineage)
    keeper.put_artifact(run_id, "samples/x.png", b"picture")
    stack_store.put(f"training/{lineage}/{run_id}/checkpoint", b"half learned")
    monkeypatch.setattr(keeper, "_make_lineage", killed)
    manifest, files = make(lineage, run_id)
    with pytest.raises(KilledError):
        keeper.publish(
            lineage, run_id, manifest, files, submission="s", verdict=Verdict(passed=True), job="j", check=fine
        )
    assert keeper.garbage(lineage, days=30) == NOTHING, "it is young"
    garbage = keeper.garbage(lineage, days=0)
    assert garbage == Garbage((), (), (run_id,))
    with lease(stack_store, lineage, ttl=1, holder="job-7"), pytest.raises(BusyError, match="job-7"):
        keeper.collect(lineage, garbage, days=0)
    assert keeper.collect(lineage, garbage, days=0) == garbage
    assert [key for key in stack_store.list("") if run_id in key] == []
    assert keeper.garbage(lineage, days=0) == NOTHING
    monkeypatch.undo()
    assert publish(keeper, lineage).number == 1


def test_a_damaged_log_stops_the_collection(keeper: Retention, stack_store: ObjectStore, lineage: str) -> None:
    grow(keeper, lineage, None, None)
    stack_store.put(f"audit/{lineage}/000000000001.json", b"damaged")
    with pytest.raises(RefusedError, match="audit log"):
        keeper.garbage(lineage, days=0)
    with pytest.raises(InputError, match="days"):
        keeper.garbage(lineage, days=-1)
