"""What is known of something while the store fails, hangs and comes back."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.auth import Door, People
from services.errors import UnauthorizedError, UnavailableError
from services.objects import DirectoryStore
from services.recall import Recall
from tests.house import PATIENCE, wait_until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Has one value, and may hang or be down."""

    def __init__(self) -> None:
        self.value, self.down, self.calls = "old", False, 0
        self.answers = threading.Event()
        self.answers.set()

    def find(self, _: str) -> str:
        self.calls += 1
        assert self.answers.wait(PATIENCE)
        if self.down:
            raise UnavailableError("down")
        return self.value


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recall(source: Source, clock: Clock) -> Recall[str]:
    return Recall(source.find, clock=clock)


@pytest.fixture(autouse=True)
def _nobody_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a call that hangs waits for as long as the test."""
    wait_at_most(2.0 * PATIENCE, monkeypatch)


def wait_at_most(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATIENCE", "_LONGEST"):
        monkeypatch.setattr(f"services.recall.{name}", seconds)


def test_a_change_is_seen_after_some_seconds_by_whoever_asks_first(
    recall: Recall[str], source: Source, clock: Clock
) -> None:
    assert recall.get("a") == "old"
    source.value = "new"
    assert recall.get("a") == "old"
    clock.now += 5
    assert recall.get("a") == "new"
    assert source.calls == 2
    source.value = "newest"
    recall.forget("a")
    assert recall.get("a") == "newest"


def test_one_call_serves_all_who_ask(recall: Recall[str], source: Source) -> None:
    source.answers.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(recall.get, "a") for _ in range(8)]
        wait_until(lambda: source.calls > 0)
        source.answers.set()
        assert {future.result(PATIENCE) for future in asked} == {"old"}
    assert source.calls == 1


def test_a_store_that_hangs_holds_up_nobody_and_is_asked_by_one(
    recall: Recall[str], source: Source, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [recall.get(key) for key in "ab"] == ["old"] * 2
    clock.now += 600
    source.value = "new"
    source.answers.clear()
    wait_at_most(0.05, monkeypatch)
    assert recall.get("a") == "old"
    wait_at_most(2.0 * PATIENCE, monkeypatch)
    wait_until(lambda: source.calls == 3)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(recall.get, 100 * "ab")) == {"old"}
        assert source.calls == 3, "two at the beginning, and the one that hangs"
        clock.now += 5
        assert set(pool.map(recall.get, 100 * "ab")) == {"old"}
    wait_until(lambda: source.calls == 4)
    source.answers.set()
    wait_until(lambda: [recall.get(key) for key in "ab"] == ["new"] * 2)


def test_a_store_that_fails_is_left_alone_for_some_seconds(recall: Recall[str], source: Source, clock: Clock) -> None:
    recall.get("a")
    clock.now += 600
    source.down = True
    assert [recall.get("a") for _ in range(9)] == ["old"] * 9
    assert source.calls == 2
    clock.now += 5
    assert recall.get("a") == "old"
    wait_until(lambda: source.calls == 3)
    clock.now += 3600
    with pytest.raises(UnavailableError):
        recall.get("a")


def test_of_whom_nothing_is_known_it_is_said_at_once(
    recall: Recall[str], source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers.clear()
    wait_at_most(0.05, monkeypatch)
    with pytest.raises(UnavailableError, match="does not answer"):
        recall.get("a")
    wait_at_most(2.0 * PATIENCE, monkeypatch)
    wait_until(lambda: source.calls == 1)
    for key in "abc":
        with pytest.raises(UnavailableError) as error:
            recall.get(key)
        assert error.value.retry_after
    assert source.calls == 1
    source.answers.set()
    wait_until(lambda: recall._again is None)
    assert recall.get("a") == "old"


def test_what_was_found_before_a_change_is_not_remembered_after_it(recall: Recall[str], source: Source) -> None:
    source.answers.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(recall.get, "a")
        wait_until(lambda: source.calls > 0)
        recall.forget("a")
        source.answers.set()
        asked.result(PATIENCE)
    source.value = "new"
    assert recall.get("a") == "new"


def test_an_error_of_another_kind_is_everybodys(recall: Recall[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> str:
        raise ValueError

    monkeypatch.setattr(recall, "_find", broken)
    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011
            recall.get("a")


class Hanging(DirectoryStore):
    """A store whose listings hang, as those of a server behind a network that drops all packets."""

    answers = threading.Event()

    def list(self, prefix: str = "") -> object:  # type: ignore[override]
        assert self.answers.wait(PATIENCE)
        return super().list(prefix)


def test_whoever_has_a_token_is_let_in_while_the_store_hangs_and_no_longer_when_it_was_taken_away(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Hanging(tmp_path)
    store.answers.set()
    people = People(store)
    door, token = Door(people, clock=clock), people.invite("ada")
    assert door.admit(token).name == "ada"
    clock.now += 600
    store.answers.clear()
    wait_at_most(0.05, monkeypatch)
    (digest,) = door.admit(token).digests
    store.delete(f"people/ada/tokens/{digest}")
    wait_at_most(2.0 * PATIENCE, monkeypatch)
    assert door.admit(token).name == "ada"
    store.answers.set()

    def refused() -> bool:
        clock.now += 1
        try:
            door.admit(token)
        except UnauthorizedError:
            return True
        return False

    wait_until(refused)
