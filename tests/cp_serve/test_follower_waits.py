"""Bank and follower on a stand-in for the registry: who waits for whom (test_follower.py has the real one)."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cp_serve import ahead
from cp_serve.bank import Bank
from cp_serve.follower import Follower
from cp_serve.metrics import Metrics
from services.base_model import BaseModel
from services.canary import Canary, Targets
from services.errors import UnavailableError
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.versions import adapter_of, go_live
from tests.house import wait_until


@dataclass
class Shelf:
    """A registry's methods that the bank and the follower use, under the test's thumb.

    Attributes:
        held: lineage, `record` or `end` -> what its fetch, or what writes into the audit log, waits for.
        failing: the same, or `*` for the registry itself -> what it raises.
    """

    base: BaseModel
    live: dict[str, int] = field(default_factory=dict)
    candidates: dict[str, int] = field(default_factory=dict)
    canaries: dict[str, Canary] = field(default_factory=dict)
    unrecorded: set[str] = field(default_factory=set)
    unfit: set[tuple[str, int]] = field(default_factory=set)
    failing: dict[str, Exception] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    fetched: list[tuple[str, int]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def targets(self) -> dict[str, Targets]:
        if "*" in self.failing:
            raise self.failing["*"]
        return {
            name: Targets(
                number, self.candidates.get(name), self.canaries.get(name), unrecorded=name in self.unrecorded
            )
            for name, number in self.live.items()
        }

    def version(self, lineage: str, number: int) -> SimpleNamespace:
        return SimpleNamespace(gate_passed=(lineage, number) not in self.unfit)

    def live_before(self, _lineage: str, _number: int) -> Iterator[int]:
        return iter(())

    def record_found(self, lineage: str) -> None:
        self._write("record")
        self.unrecorded.discard(lineage)

    def end_canary(self, lineage: str, _number: int, **_: object) -> bool:
        self._write("end")
        return self.canaries.pop(lineage, None) is not None

    def _write(self, what: str) -> None:
        self.written.append(what)
        if what in self.held:
            assert self.held[what].wait(PATIENCE)
        if what in self.failing:
            raise self.failing[what]

    def fetch(self, lineage: str, number: int, **_: object) -> tuple[None, Any]:
        self.fetched.append((lineage, number))
        if lineage in self.held:
            assert self.held[lineage].wait(PATIENCE)
        if lineage in self.failing:
            raise self.failing[lineage]
        return None, adapter_of(self.base, {"fox": 1})


@pytest.fixture
def shelf(tiny_base: BaseModel) -> Iterator[Shelf]:
    shelf = Shelf(tiny_base)
    yield shelf
    for held in shelf.held.values():
        held.set()


def bank_of(shelf: Shelf, *, room: int = 1000) -> Bank:
    """A bank with room for so many versions."""
    size = adapter_of(shelf.base, {"fox": 1}).bytes()
    return Bank(shelf, shelf.base, max_bytes=room * size)  # type: ignore[arg-type]


def follower_of(shelf: Shelf, bank: Bank, metrics: Metrics | None = None) -> Follower:
    return Follower(shelf, bank, seconds=0.01, metrics=metrics)  # type: ignore[arg-type]


def look_until(follower: Follower, condition: Callable[[], bool]) -> None:
    """Look, as the thread does, until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the awaited condition never held"
        follower.look()


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
        look_until(follower, lambda: False)
    follower.start()
    try:
        wait_until(lambda: bank.pointers() == {"b": 1, "c": 1})
        assert not follower.refused, "nothing is wrong with it"
        shelf.failing.clear()
        wait_until(lambda: bank.pointers() == {"a": 1, "b": 1, "c": 1})
    finally:
        follower.stop()


def test_a_version_that_comes_slowly_holds_up_no_other_lineage(shelf: Shelf) -> None:
    shelf.live, shelf.held["slow"] = {"slow": 1, "quick": 1}, threading.Event()
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank)
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
    follower = follower_of(shelf, bank)
    look_until(follower, lambda: bank.pointers() == {"pets": 1})
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


def test_a_roll_back_waits_for_no_fetch_of_others(shelf: Shelf) -> None:
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank)
    for number in (1, 2):
        shelf.live = {"pets": number}
        look_until(follower, lambda: bank.pointers() == shelf.live)
    slow = {f"slow-{index}": 1 for index in range(4)}
    shelf.held = {name: threading.Event() for name in slow}
    shelf.live = {"pets": 2, **slow}
    follower.look()
    wait_until(lambda: len(shelf.fetched) == 2 + len(slow))
    shelf.live = {"pets": 1, **slow}
    follower.look()
    assert bank.pointers() == {"pets": 1}, "one look is enough"
    assert follower.under_way == len(slow)
    for held in shelf.held.values():
        held.set()
    look_until(follower, lambda: bank.pointers() == shelf.live)
    follower.stop()


def test_a_look_does_not_wait_for_what_is_written_down(shelf: Shelf) -> None:
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank)
    for number in (1, 2):
        shelf.live = {"pets": number}
        look_until(follower, lambda: bank.pointers() == shelf.live)
    shelf.held["record"] = threading.Event()
    shelf.unrecorded.add("pets")
    for number in (1, 2, 1):
        shelf.live = {"pets": number}
        follower.look()
        assert bank.pointers() == {"pets": number}
    assert shelf.written == ["record"], "begun once"
    shelf.failing["record"] = KeyError("secret")
    shelf.held["record"].set()
    look_until(follower, lambda: len(shelf.written) > 1)
    assert shelf.unrecorded, "it failed, no look did, and it is tried again"
    shelf.failing.clear()
    look_until(follower, lambda: not shelf.unrecorded)
    follower.stop()


def test_a_look_does_not_wait_until_a_canary_is_ended(shelf: Shelf) -> None:
    metrics = Metrics()
    bank = bank_of(shelf)
    follower = follower_of(shelf, bank, metrics)
    shelf.live, shelf.canaries = {"pets": 1}, {"pets": Canary(2, 50)}
    shelf.unfit.add(("pets", 2))
    shelf.held["end"] = threading.Event()
    look_until(follower, lambda: bank.pointers() == {"pets": 1} and bool(shelf.written))
    bank.get("pets", 3)
    shelf.live = {"pets": 3}
    follower.look()
    assert bank.pointers() == {"pets": 3}
    assert follower.rollout.pick("pets") is None
    shelf.held["end"].set()
    look_until(follower, lambda: counted(metrics, "palimpsest_canary_returns_total") > 0)
    for _ in range(3):
        follower.look()
    assert counted(metrics, "palimpsest_canary_returns_total") == 1
    follower.stop()


def counted(metrics: Metrics, name: str) -> float:
    return next(s.value for family in metrics.collect() for s in family.samples if s.name == name)


def test_what_had_to_leave_memory_is_fetched_ahead_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = bank_of(shelf, room=2)
    follower = follower_of(shelf, bank)
    shelf.live, shelf.candidates = {"pets": 1}, {"pets": 2}
    look_until(follower, lambda: bank.pointers() == {"pets": 1} and ("pets", 2) in bank)
    bank.get("cold", 1)
    assert ("pets", 2) not in bank
    follower.look()
    assert follower.under_way == 0, "not all the time, where memory is short for good"
    monkeypatch.setattr(ahead, "_AGAIN_SECONDS", 0.0)
    look_until(follower, lambda: ("pets", 2) in bank)
    assert shelf.fetched.count(("pets", 2)) == 2
    assert ("pets", 1) in bank
    follower.stop()


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
