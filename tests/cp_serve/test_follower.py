"""Bank and follower on a real registry: what is verified and swapped. test_follower_waits.py has who waits for whom."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
import torch

from cp_serve import follower as follower_module
from cp_serve.bank import Bank
from cp_serve.follower import Follower
from services.base_model import BaseModel
from services.canary import Canary, Targets
from services.errors import InputError, NotFoundError, RefusedError, UnavailableError
from services.lineage import LIVE, Registry
from services.manifest import ADAPTER_FILE, BaseRef, sha256
from services.objects import open_store
from services.settings import Settings
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.versions import adapter_of, publish
from tests.house import wait_until
from tests.proxy import Proxy


class OneLineage(Registry):
    """The real registry, without the lineages of other tests."""

    only = ""

    def targets(self) -> dict[str, Targets]:
        return {name: target for name, target in super().targets().items() if name == self.only}


@dataclass(frozen=True)
class Rooms:
    """A registry behind a network that can fail, and a bank that is followed by hand."""

    registry: Registry
    bank: Bank
    follower: Follower
    network: Proxy
    base: BaseModel
    lineage: str

    def publish(self, seed: int, *, live: bool = True, ref: BaseRef | None = None, passed: bool = True) -> int:
        adapter = adapter_of(self.base, {"fox": 1}, seed=seed)
        return publish(self.registry, self.lineage, self.base, adapter, live=live, ref=ref, passed=passed).number

    def look(self) -> None:
        """Look, and again for as long as something is on its way."""
        self.follower.look()
        while self.follower.under_way:
            self.follower.look()

    @property
    def served(self) -> int | None:
        return self.bank.pointers().get(self.lineage)

    @property
    def refusal(self) -> str:
        return self.follower.refused[self.lineage].why


@pytest.fixture
def rooms(mlflow_server: Settings, tiny_base: BaseModel) -> Iterator[Rooms]:
    store = open_store(mlflow_server)
    with Proxy(mlflow_server.mlflow) as network:
        lineage = f"l{uuid4().hex[:12]}"
        far = OneLineage(mlflow_server.model_copy(update={"mlflow_uri": network.endpoint}), store)
        far.only = lineage
        bank = Bank(far, tiny_base)
        follower = Follower(far, bank, seconds=0.05, patience=PATIENCE)
        yield Rooms(Registry(mlflow_server, store), bank, follower, network, tiny_base, lineage)


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
    rooms.look()
    assert rooms.follower.refused[rooms.lineage] is not first, "but again after a while"
    rooms.registry.set_live(rooms.lineage, 1)
    rooms.look()
    assert not rooms.follower.refused


def test_a_damaged_version_is_refused_before_the_pointer_moves(rooms: Rooms, mlflow_server: Settings) -> None:
    rooms.publish(1)
    rooms.look()
    number = rooms.publish(2, live=False)
    store = open_store(mlflow_server)
    run_id = rooms.registry.version(rooms.lineage, number).run_id
    (key,) = [key for key in store.list("mlflow/") if run_id in key and key.endswith(ADAPTER_FILE)]
    whole = store.get(key)
    rooms.registry.set_live(rooms.lineage, number)
    store.put(key, whole[:-40] + b"x" * 40)
    rooms.look()
    assert rooms.served == 1
    assert rooms.refusal
    store.put(key, whole)
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
    get = rooms.bank.get
    with monkeypatch.context() as outage:

        def away(*_: object, **__: object) -> None:
            raise UnavailableError("the store does not answer")

        outage.setattr(rooms.bank, "get", away)
        for _ in range(3):
            assert not rooms.follower._settled()
            with pytest.raises(UnavailableError):
                rooms.look()
        assert rooms.follower._settled()
        assert rooms.served is None
    assert rooms.bank.get == get
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
    assert rooms.registry.canary(rooms.lineage) is None


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
    assert rooms.registry.canary(rooms.lineage) is None
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
    assert rooms.registry.canary(rooms.lineage) is None
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
