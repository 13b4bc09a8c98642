"""Bank and follower on a stand-in for the registry: who waits for whom (test_follower.py has the real one)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from cp_serve.bank import Bank
from cp_serve.follower import Follower
from services.base_model import BaseModel
from services.canary import Targets
from services.errors import UnavailableError
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.versions import adapter_of, go_live
from tests.house import wait_until


@dataclass
class Shelf:
    """A registry's two methods that the bank and the follower use, under the test's thumb."""

    base: BaseModel
    live: dict[str, int] = field(default_factory=dict)
    failing: dict[str, Exception] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    fetched: list[tuple[str, int]] = field(default_factory=list)

    def targets(self) -> dict[str, Targets]:
        if "*" in self.failing:
            raise self.failing["*"]
        return {name: Targets(number, None, None) for name, number in self.live.items()}

    def fetch(self, lineage: str, number: int, **_: object) -> tuple[None, Any]:
        self.fetched.append((lineage, number))
        if lineage in self.held:
            assert self.held[lineage].wait(PATIENCE)
        if lineage in self.failing:
            raise self.failing[lineage]
        return None, adapter_of(self.base, {"fox": 1})


@pytest.fixture
def shelf(tiny_base: BaseModel) -> Shelf:
    return Shelf(tiny_base)


def bank_of(shelf: Shelf) -> Bank:
    return Bank(shelf, shelf.base)  # type: ignore[arg-type]


def follower_of(shelf: Shelf, bank: Bank, *, patience: float = PATIENCE) -> Follower:
    return Follower(shelf, bank, seconds=0.01, patience=patience)  # type: ignore[arg-type]


def test_a_version_is_fetched_once_however_many_ask(shelf: Shelf) -> None:
    bank, shelf.held["pets"] = bank_of(shelf), threading.Event()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(bank.get, "pets", 1) for _ in range(8)]
        wait_until(lambda: bool(shelf.fetched))
        shelf.held["pets"].set()
        slots = {future.result(PATIENCE) for future in asked}
    assert len(slots) == 1
    assert shelf.fetched == [("pets", 1)]


def test_a_slow_version_holds_up_nobody_else(shelf: Shelf) -> None:
    bank, shelf.held["slow"] = bank_of(shelf), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(bank.get, "slow", 1)
        wait_until(lambda: bool(shelf.fetched))
        go_live(bank, "quick", 1)
        assert bank.pointers() == {"quick": 1}
        assert not slow.done()
        shelf.held["slow"].set()
        assert slow.result(PATIENCE).number == 1


def test_reading_and_forgetting_at_once_break_nothing(shelf: Shelf) -> None:
    bank, done = bank_of(shelf), threading.Event()

    def read() -> int:
        reads = 0
        while not done.is_set():
            assert bank.pointers().keys() <= {f"l{number}" for number in range(40)}
            bank.get(f"l{reads % 40}", 1)
            reads += 1
        return reads

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for round_ in range(20):
            for number in range(40):
                go_live(bank, f"l{number}", 1)
            left = {f"l{number}": 1 for number in range(round_)}
            bank.keep(left, left)
        done.set()
        assert all(reader.result(PATIENCE) for reader in readers)


def test_a_failed_fetch_changes_nothing_and_may_be_repeated(shelf: Shelf) -> None:
    bank = bank_of(shelf)
    go_live(bank, "pets", 1)
    shelf.failing["pets"] = UnavailableError("away")
    with pytest.raises(UnavailableError):
        go_live(bank, "pets", 2)
    assert bank.pointers() == {"pets": 1}
    shelf.failing.clear()
    go_live(bank, "pets", 2)
    assert bank.pointers() == {"pets": 2}


def test_one_lineage_whose_files_are_away_holds_up_no_other(shelf: Shelf) -> None:
    shelf.live = {"a": 1, "b": 1, "c": 1}
    shelf.failing["a"] = UnavailableError("away")
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank)
    with pytest.raises(UnavailableError):
        follower.look()
    assert bank.pointers() == {"b": 1, "c": 1}
    assert not follower.refused, "nothing is wrong with it"
    shelf.failing.clear()
    follower.look()
    assert bank.pointers() == {"a": 1, "b": 1, "c": 1}


def test_a_version_that_comes_slowly_holds_up_no_other_lineage(shelf: Shelf) -> None:
    shelf.live, shelf.held["slow"] = {"slow": 1, "quick": 1}, threading.Event()
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank, patience=0.01)
    follower.start()
    try:
        wait_until(lambda: bank.pointers() == {"quick": 1})
        shelf.live = {"slow": 1, "quick": 2}
        wait_until(lambda: bank.pointers() == {"quick": 2})
        assert not follower.synced.is_set(), "a live version is still on its way"
        assert shelf.fetched.count(("slow", 1)) == 1
        shelf.held["slow"].set()
        assert follower.synced.wait(PATIENCE)
        assert bank.pointers() == {"quick": 2, "slow": 1}
    finally:
        shelf.held["slow"].set()
        follower.stop()


def test_what_comes_after_it_was_rolled_back_does_not_go_live(shelf: Shelf) -> None:
    shelf.live = {"pets": 1}
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank, patience=0.01)
    while bank.pointers() != {"pets": 1}:
        follower.look()
    shelf.live, shelf.held["pets"] = {"pets": 2}, threading.Event()
    follower.look()
    assert follower.under_way == 1
    shelf.live = {"pets": 1}
    shelf.held["pets"].set()
    while follower.under_way:
        follower.look()
        assert bank.pointers() == {"pets": 1}
    follower.stop()
    assert bank.here("pets", 2), "it came"


def test_no_error_ends_the_follower(shelf: Shelf, capfd: pytest.CaptureFixture[str]) -> None:
    shelf.live, shelf.failing = {"a": 1, "b": 1}, {"*": ValueError("nonsense"), "a": KeyError("secret")}
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank)
    follower.start()
    try:
        assert not follower.synced.wait(0.1)
        assert follower.alive
        del shelf.failing["*"]
        assert follower.synced.wait(PATIENCE)
        assert bank.pointers() == {"b": 1}
        assert follower.refused["a"].why == "KeyError"
        shelf.live = {"b": 1}
        wait_until(lambda: not follower.refused)
    finally:
        follower.stop()
    assert not follower.alive
