"""Deleting versions and forgetting concepts."""

from contextlib import ExitStack

import pytest

from services.errors import BusyError, ConflictError, InputError, NotFoundError, UnavailableError
from services.images import check_images
from services.intake import Intake
from services.lease import lease, take_place
from services.lineage import CANDIDATE, LIVE, Verdict
from services.manifest import MANIFEST_FILE
from services.objects import DirectoryStore, ObjectStore, open_store
from services.retention import Garbage, Retention
from services.settings import Settings
from services.versions import DELETED_MARK
from tests.killed import killed
from tests.lineages import BASE, LAYOUT, Mlflow, begin, fine, folder, grow, make, numbers, publish
from tests.services.pictures import encode, picture

NOTHING = Garbage((), (), ())


def test_a_deleted_version_leaves_no_object(
    keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    first, second, _ = grow(keeper, lineage, None, 1, 1)
    keeper.put_artifact(second.run_id, "samples/concepts.png", b"picture")
    place = folder(stack_store, mlflow_client, second).rpartition("/")[0]
    assert len(list(stack_store.list(f"{place}/"))) == 5
    keeper.delete(lineage, 2, actor="ada", reason="a secret")
    assert list(stack_store.list(f"{place}/")) == []
    assert numbers(mlflow_client, lineage) == [1, 3]
    assert mlflow_client.get_run(second.run_id).info.lifecycle_stage == "deleted"
    assert keeper.deleted()[lineage] == {2}
    assert keeper.aliases(lineage) == {LIVE: 3}
    assert keeper.fetch(lineage, first.number, layout=LAYOUT, base=BASE), "its neighbour is untouched"
    entry = keeper.history(lineage)[-1]
    assert (entry.action, entry.before, entry.actor, entry.reason) == ("delete", 2, "ada", "a secret")
    with pytest.raises(NotFoundError):
        keeper.delete(lineage, 2)
    assert publish(keeper, lineage, parent=first).number == 4, "numbers never come back"


def test_of_many_deleted_versions_the_newest_are_told(
    keeper: Retention, lineage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that follows has let go of the others long ago, and a tag has a limit."""
    monkeypatch.setattr("services.retention._TOLD", 2)
    grow(keeper, lineage, None, None, None, None)
    for number in (3, 1, 2):
        keeper.delete(lineage, number)
    assert keeper.deleted()[lineage] == {1, 2}


def test_what_is_used_is_not_deleted(keeper: Retention, mlflow_client: Mlflow, lineage: str) -> None:
    grow(keeper, lineage, None, 1, 1)
    keeper.set_canary(lineage, 2, 10)
    with pytest.raises(ConflictError, match=r"versions learned on it: \[2, 3\]"):
        keeper.delete(lineage, 1)
    for number, alias in ((3, "live"), (2, "canary")):
        with pytest.raises(ConflictError, match=f"is {alias}; move that first"):
            keeper.delete(lineage, number)
    for number in (0, 4, 2**40):
        with pytest.raises(NotFoundError):
            keeper.delete(lineage, number)
    assert numbers(mlflow_client, lineage) == [1, 2, 3]


def test_a_candidate_may_be_deleted(keeper: Retention, lineage: str) -> None:
    grow(keeper, lineage, None, 1)
    publish(keeper, lineage, verdict=Verdict(passed=False))
    assert keeper.aliases(lineage)[CANDIDATE] == 3
    keeper.delete(lineage, 3)
    assert keeper.aliases(lineage) == {LIVE: 2}


def test_nothing_is_deleted_below_a_job(keeper: Retention, stack_store: ObjectStore, lineage: str) -> None:
    grow(keeper, lineage, None, None)
    with (
        lease(stack_store, lineage, ttl=1, holder="job-7"),
        pytest.raises(BusyError, match="job-7"),
    ):
        keeper.delete(lineage, 1)
    keeper.delete(lineage, 1)


def test_nothing_is_deleted_below_a_job_that_was_submitted_and_begins(
    stack_settings: Settings, stack_store: ObjectStore, lineage: str
) -> None:
    place, begun, said = take_place(stack_store, lineage, holder="job-7"), ExitStack(), list[str]()

    def begin_job(line: str) -> None:
        if not said:
            begun.enter_context(lease(stack_store, lineage, ttl=1, holder="job-7", place=place))
        said.append(line.partition(".")[0])

    keeper = Retention(stack_settings, stack_store, begin_job)
    grow(keeper, lineage, None, None)
    with begun, pytest.raises(BusyError, match="job-7"):
        keeper.delete(lineage, 1)
    assert said == ["somebody who came before is at work on it", "job-7 is at work on it"]
    assert len(keeper.versions(lineage)) == 2


@pytest.mark.parametrize("stage", ["after create leases/.*/0*1$", "after create audit/.*", "after delete mlflow/.*"])
def test_a_deletion_that_was_killed_is_finished_by_the_same_command(
    mlflow_server: Settings, lineage: str, stage: str
) -> None:
    settings = mlflow_server.model_copy(update={"lease_seconds": 0.4})
    keeper = Retention(settings, open_store(settings))
    made = grow(keeper, lineage, None, 1, 2)
    killed(stage, lambda: keeper.forget(lineage, "c1", delete=True))
    assert keeper.forget(lineage, "c1", delete=True).live == 1
    assert [version.number for version in keeper.versions(lineage)] == [1]
    assert [entry.before for entry in keeper.history(lineage) if entry.action == "delete"] == [3, 2], "once each"
    assert keeper.deleted()[lineage] == {2, 3}
    left = [key for key in open_store(settings).list("mlflow/") if any(info.run_id in key for info in made[1:])]
    assert left == []


def test_a_version_made_live_while_it_is_condemned_stays(
    keeper: Retention, mlflow_client: Mlflow, lineage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(keeper, lineage, None, None)
    mark = keeper._client.set_model_version_tag

    def moved_meanwhile(*args: str) -> None:
        mark(*args)
        if args[2] == DELETED_MARK:
            mlflow_client.set_registered_model_alias(lineage, LIVE, "1")

    monkeypatch.setattr(keeper._client, "set_model_version_tag", moved_meanwhile)
    with pytest.raises(ConflictError, match="is live"):
        keeper.delete(lineage, 1)
    monkeypatch.undo()
    assert [entry for entry in keeper.history(lineage) if entry.action == "delete"] == [], "nothing was"
    assert keeper.fetch(lineage, 1, layout=LAYOUT, base=BASE)


class StuckStore(DirectoryStore):
    """A directory in which deleting fails without saying so."""

    def delete(self, key: str) -> None:
        if not key.endswith(MANIFEST_FILE):
            super().delete(key)


def test_what_could_not_be_deleted_is_said_and_finished_later(mlflow_server: Settings, lineage: str) -> None:
    from pathlib import Path

    keeper = Retention(mlflow_server, StuckStore(Path(mlflow_server.store_uri)))
    grow(keeper, lineage, None, None)
    with pytest.raises(UnavailableError, match=r"1 objects .* could not be deleted"):
        keeper.delete(lineage, 1)
    assert [version.number for version in keeper.versions(lineage)] == [2], "half-deleted is invisible"
    whole = Retention(mlflow_server, DirectoryStore(Path(mlflow_server.store_uri)))
    assert whole.garbage(lineage, days=30) == Garbage((), (1,), ())
    whole.collect(lineage, whole.garbage(lineage, days=30), days=30)
    assert whole.garbage(lineage, days=30) == NOTHING
    assert len([entry for entry in whole.history(lineage) if entry.action == "delete"]) == 1


def test_a_copy_that_mlflow_made_elsewhere_holds_no_files_back(
    keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    _, second = grow(keeper, lineage, None, None)
    place = folder(stack_store, mlflow_client, second)
    keeper.set_live(lineage, 1)
    mlflow_client.copy_model_version(f"models:/{lineage}/2", f"{lineage}-copy")
    keeper.delete(lineage, 2)
    assert list(stack_store.list(f"{place}/")) == []


def test_a_version_of_another_lineages_run_takes_no_files_along(
    keeper: Retention, mlflow_client: Mlflow, lineage: str
) -> None:
    (theirs,) = grow(keeper, f"{lineage}-theirs", None)
    grow(keeper, lineage, None)
    source = mlflow_client.get_model_version(theirs.lineage, "1")
    mlflow_client.create_model_version(lineage, source.source, theirs.run_id, tags=dict(source.tags))
    keeper.delete(lineage, 2)
    assert keeper.fetch(theirs.lineage, 1, layout=LAYOUT, base=BASE)


def test_a_version_that_shares_anothers_run_takes_no_files_along(
    keeper: Retention, mlflow_client: Mlflow, lineage: str
) -> None:
    (info,) = grow(keeper, lineage, None)
    own = mlflow_client.get_model_version(lineage, "1")
    mlflow_client.create_model_version(lineage, own.source, info.run_id, tags=dict(own.tags), await_creation_for=0)
    keeper.delete(lineage, 2)
    assert keeper.fetch(lineage, 1, layout=LAYOUT, base=BASE)


def test_forgetting_goes_back_to_before_the_concept(keeper: Retention, lineage: str) -> None:
    grow(keeper, lineage, None, 1, 2, 3)
    forgotten = keeper.forget(lineage, "c1", actor="ada")
    assert (forgotten.live, forgotten.resubmit) == (1, ("c2", "c3"))
    assert (forgotten.knowing, forgotten.deleted) == ((2, 3, 4), ())
    assert keeper.aliases(lineage)[LIVE] == 1
    assert keeper.history(lineage)[-1].reason == "forget <c1>"
    assert keeper.undo(lineage) == 4, "nothing was deleted"
    assert keeper.forget(lineage, "c3").resubmit == ()


def test_forgetting_for_good_deletes_every_version_that_knew(
    keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    made = grow(keeper, lineage, None, 1, 2, 1)
    keeper.set_live(lineage, 3)
    keeper.set_canary(lineage, 4, 5)
    places = [folder(stack_store, mlflow_client, info) for info in made]
    forgotten = keeper.forget(lineage, "c1", delete=True)
    assert (forgotten.live, forgotten.knowing, forgotten.deleted) == (1, (), (4, 3, 2))
    assert numbers(mlflow_client, lineage) == [1]
    assert [bool(list(stack_store.list(f"{place}/"))) for place in places] == [True, False, False, False]
    with pytest.raises(NotFoundError, match=r"No version of .* knows <c1>"):
        keeper.forget(lineage, "c1")


def test_forgetting_for_good_is_refused_whole_while_a_job_learns(
    keeper: Retention, stack_store: ObjectStore, lineage: str
) -> None:
    grow(keeper, lineage, None, 1, 2)
    with lease(stack_store, lineage, ttl=1, holder="job-7"), pytest.raises(BusyError, match="job-7"):
        keeper.forget(lineage, "c1", delete=True)
    assert keeper.aliases(lineage)[LIVE] == 3, "nothing moved"
    assert keeper.forget(lineage, "c1", delete=True).resubmit == ("c2",)


def test_forgetting_for_good_that_was_interrupted_is_finished_by_repeating_it(
    mlflow_server: Settings, lineage: str
) -> None:
    from pathlib import Path

    place = Path(mlflow_server.store_uri)
    stuck, whole = Retention(mlflow_server, StuckStore(place)), Retention(mlflow_server, DirectoryStore(place))
    made = grow(stuck, lineage, None, 1, 2)
    whole._store.put(f"training/{lineage}/run/checkpoint", b"half learned")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="could not be deleted"):
            stuck.forget(lineage, "c1", delete=True)
    forgotten = whole.forget(lineage, "c1", delete=True)
    assert (forgotten.live, forgotten.deleted, forgotten.knowing) == (1, (3, 2), ())
    assert forgotten.resubmit == ("c2",), "it is said although `live` went back long ago"
    left = list(whole._store.list(""))
    assert [
        key for key in left if any(info.run_id in key for info in made[1:]) or key.startswith(f"training/{lineage}/")
    ] == []
    told = [entry.before for entry in whole.history(lineage) if entry.action == "delete"]
    assert told == [3, 2], "once each"


def test_forgetting_for_good_takes_what_refused_and_broken_jobs_left(
    keeper: Retention, stack_settings: Settings, stack_store: ObjectStore, lineage: str
) -> None:
    """Images that stayed for another try, and pictures of a run that made no version."""
    (first,) = grow(keeper, lineage, None)
    intake = Intake(stack_store, stack_settings)
    held = [intake.hold(check_images([("a.png", encode(picture(seed)))], stack_settings)) for seed in range(2)]
    run_id = begin(keeper, lineage)
    manifest, files = make(lineage, run_id, parent=first)
    refused = Verdict(passed=False, reasons=("no",))
    keeper.publish(
        *(lineage, run_id, manifest, files), submission="s", verdict=refused, job="", check=fine, intake=held[0]
    )
    broken = begin(keeper, lineage)
    keeper.put_artifact(broken, "samples/concepts.png", b"picture")
    assert keeper.forget(lineage, "c1", delete=True).deleted == (2,)
    assert [key for key in stack_store.list("mlflow/") if run_id in key or broken in key] == []
    assert list(stack_store.list(f"intake/{held[0]}/")) == []
    assert intake.open(held[1]), "another concept's stay"
    intake.release(held[1])


def test_forgetting_the_first_concept_lets_the_lineage_begin_anew(keeper: Retention, lineage: str) -> None:
    grow(keeper, lineage, None, 1)
    forgotten = keeper.forget(lineage, "c0", delete=True)
    assert (forgotten.live, forgotten.resubmit, forgotten.deleted) == (None, ("c1",), (2, 1))
    assert keeper.versions(lineage) == []
    assert keeper.may_begin(lineage)
    assert publish(keeper, lineage).number == 3


@pytest.mark.parametrize("name", ["c9", "Upper", ""])
def test_what_nobody_knows_cannot_be_forgotten(keeper: Retention, lineage: str, name: str) -> None:
    grow(keeper, lineage, None)
    with pytest.raises((NotFoundError, InputError)):
        keeper.forget(lineage, name)
    assert keeper.aliases(lineage)[LIVE] == 1
