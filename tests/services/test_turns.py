"""Places in the queue for a lease: whose they are, how long they are kept, and who is let in before them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.errors import BusyError
from services.lease import lease, leave_place, take_place
from services.objects import ObjectStore

LONG = 60.0  # a ttl that no test lives to see
PATIENCE = 600.0


@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_a_place_whose_owner_never_comes_lapses(store: ObjectStore, timeout: float) -> None:
    told: list[str] = []
    lost = take_place(store, "x", holder="gone", patience=0)
    with lease(store, "x", ttl=0.5, holder="a", timeout=timeout, on_wait=told.append):
        assert told == ["somebody who came before is at work on it."]
    with lease(store, "x", ttl=LONG, holder="gone", timeout=0, place=lost):
        pass
    assert not list(store.list("leases/x/queue/"))


def test_a_place_is_kept_for_a_job_that_has_yet_to_begin(store: ObjectStore) -> None:
    """For longer than a holder may be silent, until somebody says that nobody will come."""
    kept = take_place(store, "x", holder="job", patience=PATIENCE)
    entered = threading.Event()

    def enter() -> None:
        with lease(store, "x", ttl=0.2, holder="a", timeout=0):
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(enter)
        assert not entered.wait(1.0)
        leave_place(store, "x", kept)
        inside.result()


def test_who_waits_for_nobody_that_lives_gives_way_to_a_job_that_begins(store: ObjectStore) -> None:
    kept = take_place(store, "x", holder="job", patience=PATIENCE)
    waiting = threading.Event()

    def enter() -> None:
        with lease(store, "x", ttl=2, holder="a", timeout=0, on_wait=lambda _: waiting.set()):
            pass

    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(enter)
        assert waiting.wait(PATIENCE)
        with lease(store, "x", ttl=2, holder="job", place=kept), pytest.raises(BusyError, match="at work on it"):
            refused.result()


@pytest.mark.parametrize("state", [b"", b"[]", b'{"patience": "long"}', b'{"patience": NaN}', b'{"patience": -1}'])
def test_a_place_that_says_nonsense_is_like_any_other(store: ObjectStore, state: bytes) -> None:
    store.put("leases/x/queue/000000000001", state)
    with lease(store, "x", ttl=0.3, holder="a", timeout=PATIENCE):
        pass


def test_who_gives_up_leaves_the_queue(store: ObjectStore) -> None:
    with lease(store, "x", ttl=1, holder="a"):
        with pytest.raises(BusyError), lease(store, "x", ttl=LONG, holder="b", timeout=0):
            pass
        assert not list(store.list("leases/x/queue/"))
