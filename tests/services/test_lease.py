"""Leases between real threads and processes, on a real directory and a real S3 server."""

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.errors import BusyError, ConflictError, InputError, UnavailableError
from services.lease import _KEEP, _Waiter, beats, lease, take_place
from services.objects import ObjectStore, open_store_at
from tests.proxy import Proxy
from tests.s3 import Place, S3Server

ROOT = Path(__file__).parents[2]
LONG = 60.0  # a ttl that no test lives to see
PATIENCE = 600.0

INCREMENT = """
import sys, threading
from pathlib import Path
from services import lease as leases
from services.lease import lease
from services.objects import open_store_at

leases._LOOKS = 200

uri, endpoint, counter, threads, rounds = sys.argv[1:]
store, counter = open_store_at(uri, endpoint=endpoint), Path(counter)

def work():
    for _ in range(int(rounds)):
        with lease(store, "lineage", ttl=60, holder="counter", timeout=600) as held:
            value = int(counter.read_text())
            held.check()
            counter.write_text(str(value + 1))
            with counter.with_suffix(".tokens").open("a") as tokens:
                print(held.token, file=tokens)

workers = [threading.Thread(target=work) for _ in range(int(threads))]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""

HOLD = """
import sys
from services.errors import PalimpsestError
from services.lease import lease
from services.objects import open_store_at

uri, endpoint, ttl = sys.argv[1:]
with lease(open_store_at(uri, endpoint=endpoint), "lineage", ttl=float(ttl), holder="the other") as held:
    print(held.token, flush=True)
    for _ in sys.stdin:
        try:
            held.check()
            print("held", flush=True)
        except PalimpsestError as error:
            print(type(error).__name__, flush=True)
"""


def _start(script: str, place: Place, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, place.uri, place.endpoint, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class Holder:
    """Another process that has the lease until its input ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.token = int(self._line())

    def check(self) -> str:
        assert self.process.stdin
        self.process.stdin.write("check\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@contextmanager
def other_process(place: Place, *, ttl: float) -> Iterator[Holder]:
    with _start(HOLD, place, ttl) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a lease of a minute looks every 0.3 s, not every second."""
    monkeypatch.setattr("services.lease._LOOKS", 200)


def test_no_increment_is_lost_between_threads_and_processes(place: Place, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [_start(INCREMENT, place, counter, 2, 4) for _ in range(3)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert counter.read_text() == "24"
    tokens = [int(line) for line in counter.with_suffix(".tokens").read_text().split()]
    assert tokens == sorted(set(tokens))
    assert len(list(place.open().list("leases/"))) <= _KEEP + 1


@pytest.mark.usefixtures("brisk")
def test_only_one_of_many_threads_is_inside(store: ObjectStore) -> None:
    inside = threading.Semaphore(1)

    def enter(number: int) -> int:
        with lease(store, "x", ttl=LONG, holder=str(number), timeout=PATIENCE) as held:
            assert inside.acquire(blocking=False)
            held.check()
            inside.release()
            return held.token

    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(enter, range(8)))
    assert sorted(tokens) == sorted(set(tokens))


def test_the_next_one_enters_at_once_after_a_release(store: ObjectStore) -> None:
    with lease(store, "x", ttl=LONG, holder="a") as first:
        first.check()
    with lease(store, "x", ttl=LONG, holder="b", timeout=0) as second:
        assert second.token == first.token + 1
        with pytest.raises(ConflictError, match="lease of a was taken over"):
            first.check()


def test_an_error_inside_releases_too(store: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError), lease(store, "x", ttl=LONG, holder="a"):
        raise ZeroDivisionError
    with lease(store, "x", ttl=LONG, holder="b", timeout=0):
        pass


@pytest.mark.usefixtures("brisk")
def test_waiting_ends_with_who_is_in_the_way(store: ObjectStore) -> None:
    told: list[str] = []
    with lease(store, "x", ttl=2, holder="job-7"):
        with pytest.raises(BusyError, match="job-7"), lease(store, "x", ttl=LONG, holder="b", timeout=0):
            pass
        with (
            pytest.raises(BusyError),
            lease(store, "x", ttl=LONG, holder="b", timeout=1, on_wait=told.append),
        ):
            pass
    assert told == ["job-7 is at work on it."]


def test_leases_of_other_names_are_free(store: ObjectStore) -> None:
    with (
        lease(store, "a", ttl=LONG, holder="x"),
        lease(store, "a/b", ttl=LONG, holder="x", timeout=0),
        lease(store, "ab", ttl=LONG, holder="x", timeout=0),
    ):
        pass


@pytest.mark.parametrize("name", ["", "../x", "a//b"])
def test_a_name_is_part_of_a_key(store: ObjectStore, name: str) -> None:
    with pytest.raises(InputError), lease(store, name, ttl=LONG, holder="x"):
        pass


def test_a_ttl_is_positive(store: ObjectStore) -> None:
    with pytest.raises(InputError, match="ttl"), lease(store, "x", ttl=0, holder="x"):
        pass


@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_a_killed_holder_is_succeeded(place: Place, timeout: float) -> None:
    """Also by who waits for nobody that lives."""
    with other_process(place, ttl=1) as other:
        assert other.check() == "held"
        other.process.kill()
        with lease(place.open(), "lineage", ttl=1, holder="next", timeout=timeout) as held:
            held.check()
            assert held.token == other.token + 1


def test_a_living_holder_is_not(place: Place) -> None:
    with other_process(place, ttl=5) as other:
        with (
            pytest.raises(BusyError, match="the other"),
            lease(place.open(), "lineage", ttl=5, holder="next", timeout=7),
        ):
            pass
        assert other.check() == "held"
        with pytest.raises(BusyError, match="the other"), lease(place.open(), "lineage", ttl=5, holder="x", timeout=0):
            pass
        assert other.check() == "held"


def test_a_paused_holder_finds_that_it_lost(place: Place) -> None:
    store = place.open()
    with other_process(place, ttl=1) as zombie:
        zombie.process.send_signal(signal.SIGSTOP)
        with lease(store, "lineage", ttl=1, holder="next", timeout=PATIENCE) as held:
            zombie.process.send_signal(signal.SIGCONT)
            assert zombie.check() == "ConflictError"
            zombie.process.communicate()  # leaves its `with`
            held.check()
            with (
                pytest.raises(BusyError, match="next"),
                lease(store, "lineage", ttl=LONG, holder="third", timeout=0),
            ):
                pass


def test_a_zombie_cannot_bring_its_number_back_to_life(store: ObjectStore) -> None:
    with lease(store, "x", ttl=LONG, holder="a") as first:
        pass
    for _ in range(_KEEP + 2):
        with lease(store, "x", ttl=LONG, holder="b", timeout=0) as last:
            pass
    first._write(released=False)  # what a renewal does that was under way
    with pytest.raises(ConflictError):
        first.check()
    with lease(store, "x", ttl=LONG, holder="c", timeout=0) as held:
        assert held.token == last.token + 1


def test_a_waiter_that_slept_cannot_take_a_number_of_long_ago(store: ObjectStore) -> None:
    with lease(store, "x", ttl=LONG, holder="a") as first:
        pass
    sleeper = _Waiter(store, "leases/x/", ttl=LONG, holder="sleeper")  # saw nothing, and will want number 1
    for _ in range(_KEEP + 1):
        with lease(store, "x", ttl=LONG, holder="b", timeout=0) as last:
            pass
    assert not store.exists(f"leases/x/{first.token:012d}")
    assert sleeper._take(first.token) is None
    with lease(store, "x", ttl=LONG, holder="c", timeout=0) as held:
        assert held.token == last.token + 1
    assert f"leases/x/{first.token:012d}" not in set(store.list("leases/x/"))


def test_a_waiter_recognises_what_it_made_when_the_answer_was_lost(store: ObjectStore) -> None:
    waiter = _Waiter(store, "leases/x/", ttl=LONG, holder="me")
    store.create("leases/x/000000000001", json.dumps({"nonce": waiter._nonce, "beat": 0}).encode())
    held = waiter.look()
    assert held is not None
    assert held.token == 1
    held.release()


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe", b"[]", b'{"released": 1}'])
def test_garbage_is_succeeded_like_a_dead_holder(store: ObjectStore, garbage: bytes) -> None:
    store.put("leases/x/000000000041", garbage)
    store.put("leases/x/notes", b"")
    with lease(store, "x", ttl=0.2, holder="a", timeout=0) as held:
        assert held.token == 42


def test_an_outage_shorter_than_a_takeover_is_survived(s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/outage"
    with Proxy(s3.endpoint) as proxy:
        store = open_store_at(uri, endpoint=proxy.endpoint)
        with lease(store, "x", ttl=0.4, holder="a") as held:
            proxy.down()
            with pytest.raises(UnavailableError):
                held.check()
            proxy.up()
            held.check()
            _until(lambda: b'"beat": 0' not in open_store_at(uri, endpoint=s3.endpoint).get("leases/x/000000000001"))
    with lease(open_store_at(uri, endpoint=s3.endpoint), "x", ttl=LONG, holder="b", timeout=0) as second:
        assert second.token == 2


def test_a_waiter_outlives_an_outage(s3: S3Server) -> None:
    told: list[str] = []
    with Proxy(s3.endpoint) as proxy:
        store = open_store_at(f"s3://{s3.bucket}/outage-2", endpoint=proxy.endpoint)
        proxy.down()
        with pytest.raises(UnavailableError), lease(store, "x", ttl=1, holder="a", timeout=0):
            pass

        def come_back(reason: str) -> None:
            told.append(reason)
            proxy.up()

        with lease(store, "x", ttl=1, holder="a", timeout=PATIENCE, on_wait=come_back) as held:
            held.check()
    assert ["does not answer" in line for line in told] == [True]


def test_silence_that_was_not_listened_to_does_not_count(store: ObjectStore) -> None:
    """A waiter that was stopped for an hour must first hear the holder out."""
    store.put("leases/x/000000000001", b"{}")
    waiter = _Waiter(store, "leases/x/", ttl=LONG, holder="a")
    assert waiter.look() is None
    waiter._silence._looked -= 3600
    assert waiter.look() is None


def test_a_release_without_a_store_lets_the_others_wait(
    s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("palimpsest"), "propagate", True)  # other tests may have configured it
    with Proxy(s3.endpoint) as proxy:
        store = open_store_at(f"s3://{s3.bucket}/outage-3", endpoint=proxy.endpoint)
        with lease(store, "x", ttl=LONG, holder="a"):
            proxy.down()
    assert "lease not released" in caplog.text


@pytest.mark.usefixtures("brisk")
def test_those_who_wait_take_turns_in_the_order_in_which_they_queued_up(store: ObjectStore) -> None:
    places = [take_place(store, "x", holder=str(number)) for number in range(12)]
    assert places == sorted(set(places))
    order: list[int] = []

    def enter(number: int) -> None:
        with lease(store, "x", ttl=LONG, holder=str(number), timeout=PATIENCE, place=places[number]):
            order.append(number)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(enter, reversed(range(12))))
    assert order == list(range(12))
    assert not list(store.list("leases/x/queue/"))


def test_the_leases_that_are_held_are_seen(store: ObjectStore) -> None:
    assert beats(store) == {}
    with lease(store, "x", ttl=0.4, holder="a"), lease(store, "y", ttl=LONG, holder="b"):
        first = beats(store)
        assert first.keys() == {"x", "y"}
        _until(lambda: beats(store)["x"] != first["x"])
        assert beats(store)["y"] == first["y"]
    assert beats(store) == {}


def test_threads_end_with_their_lease(store: ObjectStore) -> None:
    with lease(store, "x", ttl=LONG, holder="a"):
        assert any(thread.name == "lease" for thread in threading.enumerate())
    assert not any(thread.name == "lease" for thread in threading.enumerate())


def _until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    while not condition():
        waiting.wait(0.05)
