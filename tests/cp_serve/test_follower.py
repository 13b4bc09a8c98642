"""Bank and follower on a real registry: what is verified and swapped. test_follower_waits.py has who waits for whom."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cp_serve import follower as follower_module
from cp_serve.follower import Follower
from services.audit import AuditLog
from services.errors import NotFoundError, RefusedError, UnavailableError
from services.lineage import LIVE
from services.manifest import BaseRef, sha256
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.following import Rooms
from tests.cp_serve.versions import adapter_of, publish
from tests.house import wait_until


def test_a_swap_is_a_pointer_change_and_requests_keep_their_slot(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.look()
    held = rooms.bank.live(rooms.lineage)
    assert held
    assert held.model == f"{rooms.lineage}@1"
    weights = held.adapter.up_KR.clone()
    rooms.publish(2)
    rooms.look()
    assert rooms.served == 2
    assert torch.equal(held.adapter.up_KR, weights), "whoever started with version 1 still has it"
    rooms.registry.set_live(rooms.lineage, 1)
    rooms.look()
    assert rooms.bank.live(rooms.lineage) is held, "rolling back loads nothing"


def test_a_candidate_is_served_by_number_but_not_live(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.publish(2, live=False)
    rooms.look()
    assert rooms.served == 1
    assert rooms.bank.get(rooms.lineage, 2).number == 2
    assert rooms.served == 1


def test_a_refused_version_leaves_the_one_before(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms.publish(1)
    rooms.look()
    rooms.publish(2, ref=BaseRef(id="other", revision=sha256(b"other")))
    rooms.look()
    assert rooms.served == 1
    assert "another base model" in rooms.refusal
    first = rooms.follower.refused[rooms.lineage]
    rooms.look()
    assert rooms.follower.refused[rooms.lineage] is first, "not tried at every look"
    monkeypatch.setattr(follower_module, "_AGAIN_SECONDS", 0.0)
    while rooms.follower.refused[rooms.lineage] is first:
        rooms.follower.look()  # again after a while
    rooms.registry.set_live(rooms.lineage, 1)
    rooms.look()
    assert not rooms.follower.refused


def test_a_damaged_version_is_refused_before_the_pointer_moves(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.look()
    number = rooms.publish(2, live=False)
    mend = rooms.damage(number)
    rooms.registry.set_live(rooms.lineage, number)
    rooms.look()
    assert rooms.served == 1
    assert rooms.refusal
    assert rooms.replica.refusals == 1
    mend()
    rooms.registry.set_live(rooms.lineage, 1)
    rooms.look()
    rooms.registry.set_live(rooms.lineage, number)
    rooms.look()
    assert rooms.served == number


def test_what_is_not_finite_is_refused(rooms: Rooms) -> None:
    adapter = adapter_of(rooms.base, {"fox": 1})
    broken = replace(adapter, tokens={"fox": torch.full_like(adapter.tokens["fox"], torch.nan)})
    publish(rooms.registry, rooms.lineage, rooms.base, broken)
    rooms.look()
    assert rooms.served is None
    assert "not finite" in rooms.refusal
    with pytest.raises(RefusedError, match="not finite"):
        rooms.bank.get(rooms.lineage, 1)


def test_a_new_replica_draws_with_the_latest_sound_version_before_a_refused_one(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2, 3):
        rooms.publish(seed)
    rooms.registry.set_live(rooms.lineage, 1)
    rooms.look()
    mend = rooms.damage(rooms.publish(4))
    rooms.look()
    new = rooms.new_replica()
    assert new.served == rooms.served == 1, "what was live before, not the version of the number before"
    assert new.refusal == rooms.refusal
    rooms.damage(1)
    newest = rooms.new_replica()
    assert newest.served == 3
    monkeypatch.setattr(follower_module, "_AGAIN_SECONDS", 0.0)
    mend()
    for replica in (new, newest):
        replica.look()
        assert replica.served == 4
        assert not replica.follower.refused


def test_a_new_replica_does_not_draw_with_what_was_live_before_live_was_cleared(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.registry.clear_live(rooms.lineage)
    rooms.damage(rooms.publish(2))
    new = rooms.new_replica()
    assert new.served is None
    assert new.refusal
    with pytest.raises(RefusedError):
        new.bank.get(rooms.lineage, 2)


def test_a_live_version_that_is_not_ours_is_refused_and_raises_the_alert(rooms: Rooms, mlflow_client_of: Any) -> None:
    rooms.publish(1)
    rooms.look()
    client = mlflow_client_of(rooms)
    foreign = client.create_model_version(rooms.lineage, "s3://nowhere/x", await_creation_for=0).version
    client.set_registered_model_alias(rooms.lineage, LIVE, foreign)
    rooms.look()
    for served in (rooms, rooms.new_replica()):
        assert served.served == 1
        assert "was not published by Palimpsest" in served.refusal
        assert served.replica.refusals == 1


def test_a_roll_back_in_mlflow_is_followed_in_one_look_though_the_store_is_silent(
    rooms: Rooms, mlflow_client_of: Any
) -> None:
    for seed in (1, 2):
        rooms.publish(seed)
        rooms.look()
    rooms.store.answers.clear()
    mlflow_client_of(rooms).set_registered_model_alias(rooms.lineage, LIVE, "1")
    rooms.follower.look()
    assert rooms.served == 1
    rooms.follower.look()
    rooms.store.answers.set()

    def written_down() -> bool:
        last = AuditLog(rooms.store).last_move(rooms.lineage, LIVE)
        return last is not None and (last.before, last.after, last.via) == (2, 1, "found")

    wait_until(written_down)


def test_an_outage_is_served_from_memory_and_caught_up_with(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.follower.start()
    try:
        wait_until(lambda: rooms.served == 1)
        assert rooms.follower.synced.wait(PATIENCE)
        rooms.network.down()
        rooms.publish(2)  # others still reach the registry
        slot = rooms.bank.live(rooms.lineage)
        assert slot
        assert rooms.bank.get(rooms.lineage, 1) is slot
        with pytest.raises(UnavailableError):
            rooms.bank.get(rooms.lineage, 2)
        assert rooms.served == 1
        assert rooms.follower.alive
        rooms.network.up()
        wait_until(lambda: rooms.served == 2)
    finally:
        rooms.follower.stop()


def test_a_registry_that_is_down_at_the_start_is_waited_for(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.network.down()
    rooms.follower.start()
    try:
        assert not rooms.follower.synced.wait(0.5), "not ready before the live versions are loaded"
        rooms.network.up()
        assert rooms.follower.synced.wait(PATIENCE)
        assert rooms.served == 1
    finally:
        rooms.follower.stop()


def test_files_that_are_out_of_reach_do_not_keep_a_new_replica_from_serving_others(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms.publish(1)
    get, tries = rooms.bank.get, 0
    with monkeypatch.context() as outage:

        def away(*_: object, **__: object) -> None:
            nonlocal tries
            tries += 1
            raise UnavailableError("the store does not answer")

        outage.setattr(rooms.bank, "get", away)
        for _ in range(3):
            assert not rooms.follower._settled()
            with pytest.raises(UnavailableError):
                rooms.look()
        assert rooms.follower._settled()
        assert rooms.served is None
        wait_until(lambda: tries == 4)
    assert rooms.bank.get == get
    with pytest.raises(UnavailableError):
        rooms.look()  # which hears of the last try of the outage
    rooms.look()
    assert rooms.served == 1, "it is tried on and on"


def test_a_hint_is_followed_though_polling_is_rare(rooms: Rooms) -> None:
    rooms.publish(1)
    follower = Follower(rooms.bank._registry, rooms.bank, seconds=3600.0)
    follower.start()
    try:
        assert follower.synced.wait(PATIENCE)
        rooms.publish(2)
        assert rooms.served == 1
        follower.hint()
        wait_until(lambda: rooms.served == 2)
    finally:
        follower.stop()


def test_a_lineage_without_a_live_version_is_forgotten(rooms: Rooms, mlflow_client_of: Any) -> None:
    rooms.publish(1)
    rooms.look()
    held = rooms.bank.live(rooms.lineage)
    mlflow_client_of(rooms).delete_registered_model_alias(rooms.lineage, LIVE)
    rooms.look()
    assert rooms.served is None
    assert held
    assert held.adapter.up_KR.any(), "whoever draws with it goes on"


def test_a_name_that_was_deleted_and_made_again_draws_its_own_versions(rooms: Rooms, mlflow_client_of: Any) -> None:
    rooms.publish(1, live=False)
    old = rooms.bank.get(rooms.lineage, 1)
    mlflow_client_of(rooms).delete_registered_model(rooms.lineage)
    rooms.look()
    with pytest.raises(NotFoundError):
        rooms.bank.get(rooms.lineage, 1)
    rooms.publish(2)
    rooms.look()
    new = rooms.bank.live(rooms.lineage)
    assert new
    assert new.number == old.number == 1
    assert new.digest != old.digest


@pytest.fixture
def mlflow_client_of() -> Any:
    """What anybody with access to MLflow can do."""
    return lambda rooms: rooms.registry._client
