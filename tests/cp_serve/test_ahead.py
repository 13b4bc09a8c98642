"""What may be live next, on a real registry: fetched ahead; canaries ended. test_follower_waits.py has who waits."""

import pytest

from services.canary import Canary
from services.errors import InputError, UnavailableError
from services.lineage import Registry
from tests.cp_serve.following import Rooms
from tests.house import wait_until


def test_what_may_be_live_next_is_there_before_it_is(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.publish(2, live=False)
    rooms.look()
    rooms.registry.set_live(rooms.lineage, 2)
    rooms.network.down()
    assert rooms.bank.get(rooms.lineage, 2).number == 2
    rooms.network.up()


def test_a_canary_whose_gate_failed_is_ended(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.publish(2, live=False, passed=False)
    rooms.registry.set_canary(rooms.lineage, 2, 10)
    rooms.look()
    assert [rooms.follower.rollout.pick(rooms.lineage) for _ in range(20)] == [None] * 20
    wait_until(lambda: rooms.registry.canary(rooms.lineage) is None)


def test_a_canary_that_cannot_be_ended_now_draws_nothing_and_is_ended_later(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise UnavailableError("away")

    rooms.publish(1)
    rooms.publish(2, live=False)
    rooms.publish(3, live=False, passed=False)
    rooms.registry.set_canary(rooms.lineage, 2, 50)
    rooms.look()
    assert 2 in [rooms.follower.rollout.pick(rooms.lineage) for _ in range(2)]
    rooms.registry.end_canary(rooms.lineage)
    with monkeypatch.context() as outage:
        outage.setattr(Registry, "end_canary", away)  # for the package's own replica, too: it would end it at once
        rooms.registry.set_canary(rooms.lineage, 3, 50)
        rooms.look()
        assert [rooms.follower.rollout.pick(rooms.lineage) for _ in range(4)] == [None] * 4
        assert rooms.registry.canary(rooms.lineage) == Canary(3, 50)
    rooms.look()
    wait_until(lambda: rooms.registry.canary(rooms.lineage) is None)
    ended = rooms.registry.history(rooms.lineage)[-1]
    assert (ended.after, ended.via, ended.reason) == (None, "serving", "it is not sound, or failed its gate")


def test_a_canary_that_failed_during_an_outage_is_ended_when_that_is_over(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.publish(2, live=False)
    rooms.registry.set_canary(rooms.lineage, 2, 50)
    rooms.look()
    rollout = rooms.follower.rollout
    for _ in range(30):
        rollout.record(rooms.lineage, canary=False, failed=False)
    assert 2 in [rollout.record(rooms.lineage, canary=True, failed=True) for _ in range(5)]
    rooms.network.down()
    with pytest.raises(UnavailableError):
        rooms.look()
    assert [rollout.pick(rooms.lineage) for _ in range(4)] == [None] * 4
    rooms.network.up()
    rooms.look()
    wait_until(lambda: rooms.registry.canary(rooms.lineage) is None)
    assert [rollout.pick(rooms.lineage) for _ in range(4)] == [None] * 4


def test_a_canary_is_set_and_ended_in_the_registry(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.publish(2, live=False)
    rooms.registry.set_canary(rooms.lineage, 2, 12.5)
    assert rooms.registry.canary(rooms.lineage) == Canary(2, 12.5)
    rooms.look()
    assert [rooms.follower.rollout.pick(rooms.lineage) for _ in range(16)].count(2) == 2
    rooms.registry.end_canary(rooms.lineage, 1)
    assert rooms.registry.canary(rooms.lineage), "another version's canary"
    rooms.registry.end_canary(rooms.lineage)
    rooms.registry.end_canary(rooms.lineage)
    assert rooms.registry.canary(rooms.lineage) is None
    for percent in (0, 100, float("nan")):
        with pytest.raises(InputError, match="canary_percent"):
            rooms.registry.set_canary(rooms.lineage, 2, percent)
