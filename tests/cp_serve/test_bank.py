"""What the bank keeps in memory, on a stand-in for the registry (test_follower.py has the real one)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cp_serve import bank as bank_module
from cp_serve.bank import Bank
from cp_serve.metrics import Metrics
from services.base_model import BaseModel
from services.errors import NotFoundError, RefusedError, UnavailableError
from tests.cp_serve.versions import adapter_of, go_live


@dataclass
class Shelf:
    """A registry's `fetch`, counted; `meanwhile` happens while it reads."""

    base: BaseModel
    fetched: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: dict[str, Exception] = field(default_factory=dict)
    meanwhile: Callable[[], object] = list

    def fetch(self, lineage: str, number: int, **_: object) -> tuple[None, Any]:
        self.fetched[lineage, number] += 1
        self.meanwhile()
        if lineage in self.wrong:
            raise self.wrong[lineage]
        return None, adapter_of(self.base, {"fox": 1})


@pytest.fixture
def shelf(tiny_base: BaseModel) -> Shelf:
    return Shelf(tiny_base)


def bank_of(shelf: Shelf, *, room: int, metrics: Metrics | None = None) -> Bank:
    """A bank with room for so many versions."""
    size = adapter_of(shelf.base, {"fox": 1}).bytes()
    return Bank(shelf, shelf.base, max_bytes=room * size, metrics=metrics)  # type: ignore[arg-type]


def value(metrics: Metrics, name: str) -> float:
    return next(s.value for family in metrics.collect() for s in family.samples if s.name == name)


def test_the_least_recently_used_goes_first(shelf: Shelf) -> None:
    metrics = Metrics()
    bank = bank_of(shelf, room=2, metrics=metrics)
    for number in (1, 2, 1, 3, 1, 2):
        bank.get("pets", number)
    assert shelf.fetched == {("pets", 1): 1, ("pets", 2): 2, ("pets", 3): 1}
    bank.measure()
    assert value(metrics, "palimpsest_bank_versions") == 2
    assert value(metrics, "palimpsest_bank_bytes") == 2 * bank.get("pets", 2).adapter.bytes()


def test_what_a_request_holds_stays(shelf: Shelf) -> None:
    bank = bank_of(shelf, room=1)
    with bank.hold(bank.get("pets", 1)) as held, bank.hold(held):
        for number in range(2, 6):
            bank.get("pets", number)
        assert bank.get("pets", 1) is held
    for number in range(2, 4):
        bank.get("pets", number)
    bank.get("pets", 1)
    assert shelf.fetched["pets", 1] == 2, "it went when nobody held it any more"


def test_live_versions_go_last_and_come_back_when_asked_for(shelf: Shelf) -> None:
    bank = bank_of(shelf, room=2)
    go_live(bank, "pets", 1)
    for number in range(2, 6):
        bank.get("pets", number)
    assert bank.live("pets")
    go_live(bank, "a", 1)
    go_live(bank, "b", 1)
    assert bank.live("pets") is None, "more live versions than room"
    assert bank.pointers() == {"pets": 1, "a": 1, "b": 1}
    bank.get("pets", 1)
    assert bank.live("pets")


def test_no_live_version_goes_for_one_that_nobody_needs_yet(shelf: Shelf) -> None:
    bank = bank_of(shelf, room=2)
    go_live(bank, "a", 1)
    bank.get("cold", 1)
    assert bank.get("a", 2, ahead=True)
    assert [key in bank for key in (("a", 1), ("cold", 1), ("a", 2))] == [True, False, True]
    go_live(bank, "b", 1)
    assert bank.get("a", 2, ahead=True)
    assert [key in bank for key in (("a", 1), ("b", 1), ("a", 2))] == [True, True, False]


@pytest.mark.parametrize("error", [RefusedError("no"), NotFoundError("none")])
def test_what_was_refused_is_not_asked_for_again_at_once(
    shelf: Shelf, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_module, "REFUSED_SECONDS", 600.0)
    shelf.wrong["pets"] = error
    metrics = Metrics()
    bank = bank_of(shelf, room=2, metrics=metrics)
    for _ in range(5):
        with pytest.raises(type(error)):
            bank.get("pets", 1)
    assert shelf.fetched["pets", 1] == 1
    assert value(metrics, "palimpsest_refused_adapters_total") == isinstance(error, RefusedError)
    shelf.wrong.clear()
    assert bank.get("pets", 1, anew=True), "the follower asks again"
    shelf.wrong["dogs"] = error
    monkeypatch.setattr(bank_module, "REFUSED_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(type(error)):
            bank.get("dogs", 1)
    assert shelf.fetched["dogs", 1] == 2, "and so does everybody after a moment"


def test_an_outage_is_not_remembered(shelf: Shelf) -> None:
    shelf.wrong["pets"] = UnavailableError("away")
    bank = bank_of(shelf, room=2)
    with pytest.raises(UnavailableError):
        bank.get("pets", 1)
    shelf.wrong.clear()
    assert bank.get("pets", 1)


def test_a_lineage_made_again_has_none_of_the_old_versions(shelf: Shelf) -> None:
    bank = bank_of(shelf, room=4)
    bank.keep({}, {"pets": 1})
    go_live(bank, "pets", 1)
    old = bank.get("pets", 1)
    assert bank.keep({"pets": 1}, {"pets": 1}) == set()
    assert bank.get("pets", 1) is old
    assert bank.keep({"pets": 1}, {"pets": 2}) == {"pets"}
    assert bank.get("pets", 1) is not old


def test_whoever_holds_an_old_version_does_not_bring_it_back(shelf: Shelf) -> None:
    bank = bank_of(shelf, room=4)
    bank.keep({}, {"pets": 1})
    old = bank.get("pets", 1)
    bank.keep({}, {"pets": 2})  # deleted and made anew before the request that chose it could hold it
    with bank.hold(old):
        assert bank.get("pets", 1) is not old
    assert bank.get("pets", 1) is not old


def test_what_was_read_while_its_name_was_made_anew_is_not_kept(shelf: Shelf) -> None:
    bank = bank_of(shelf, room=4)
    bank.keep({}, {"pets": 1})
    shelf.meanwhile = lambda: bank.keep({}, {"pets": 2})
    old = bank.get("pets", 1)
    shelf.meanwhile = list
    assert bank.here("pets", 1) is None
    assert bank.get("pets", 1) is not old
    assert bank.here("pets", 1) is bank.get("pets", 1)


def test_a_deleted_version_goes_even_while_a_request_holds_it(shelf: Shelf) -> None:
    metrics = Metrics()
    bank = bank_of(shelf, room=4, metrics=metrics)
    go_live(bank, "pets", 1)
    other = bank.get("pets", 2)
    deleted = {("pets", 1), ("pets", 2), ("mugs", 2)}
    with bank.hold(other):
        bank.forget(deleted)
        bank.measure()
        assert value(metrics, "palimpsest_bank_versions") == value(metrics, "palimpsest_bank_bytes") == 0
    assert bank.pointers() == {}
    with bank.hold(other):  # chosen before the deletion was seen
        bank.forget(deleted)
    bank.measure()
    assert value(metrics, "palimpsest_bank_bytes") == 0
    bank.get("pets", 2)
    assert shelf.fetched["pets", 2] == 2, "it is not here any more"
