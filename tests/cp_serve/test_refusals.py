"""What one of several replicas has no room or no time for is asked of the others."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from ray.serve.exceptions import BackPressureError

from cp_serve.replicas import Replicas
from cp_serve.requests import Drawn, DrawRequest, Progress
from cp_serve.traffic import Traffic
from services.errors import BusyError, DeadlineError, InputError, PalimpsestError, QuotaError, UnavailableError
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.handles import Handle
from tests.cp_serve.test_replicas import DRAWN, REQUEST, Replica, with_replica

T = TypeVar("T")


def with_replicas(use: Callable[[Replicas, Replica, Replica], Coroutine[Any, Any, T]]) -> T:
    """Over two replicas, of which the first is where Serve sends what was nowhere yet."""

    async def run() -> T:
        first, second = Replica(), Replica()
        replicas = Replicas(Handle(first, second), Traffic(), deadline_seconds=PATIENCE)
        return await asyncio.wait_for(use(replicas, first, second), PATIENCE)

    return asyncio.run(run())


async def streamed(replicas: Replicas, request: DrawRequest) -> Progress | Drawn:
    return [item async for item in replicas.stream(request)][-1]


WAYS = pytest.mark.parametrize(("ask", "calls"), [(Replicas.draw, 1), (streamed, 2)], ids=["draw", "stream"])
"""How a request is asked, and how many calls of a `Replica` that is: its stream draws."""


@WAYS
@pytest.mark.parametrize("refusal", [BusyError("full", retry_after=30), QuotaError("yours", retry_after=30)])
def test_what_one_replica_has_no_room_for_another_one_draws(ask: Any, calls: int, refusal: PalimpsestError) -> None:
    """Serve sends requests where there are the fewest; those that are there may be for eight pictures each."""

    async def use(replicas: Replicas, first: Replica, second: Replica) -> None:
        first.answer = refusal
        assert isinstance(await ask(replicas, REQUEST), Drawn)
        assert (len(first.asked), len(second.asked)) == (calls, calls)

    with_replicas(use)


@WAYS
@pytest.mark.parametrize("soonest", [0, 1])
def test_where_all_are_full_each_is_asked_once_and_the_soonest_is_told(ask: Any, calls: int, soonest: int) -> None:
    async def use(replicas: Replicas, *both: Replica) -> None:
        for number, replica in enumerate(both):
            replica.answer = BusyError("full", retry_after=20 if number == soonest else 30)
        with pytest.raises(BusyError) as error:
            await ask(replicas, REQUEST)
        assert error.value.retry_after == 20
        assert [len(replica.asked) for replica in both] == [calls, calls]

    with_replicas(use)


def test_a_crowd_is_not_taken_to_every_replica_where_all_are_full() -> None:
    async def use(replicas: Replicas, first: Replica, second: Replica) -> None:
        first.answer = second.answer = BusyError("full", retry_after=30)
        for _ in range(50):
            with pytest.raises(BusyError):
                await replicas.draw(REQUEST)
        assert len(first.asked) == 50
        assert len(second.asked) < 10, "some may come when the word of the first stands for both no more"

    with_replicas(use)


def test_where_serve_itself_has_no_room_nobody_is_asked_again_and_again() -> None:
    async def use(replicas: Replicas, first: Replica, second: Replica) -> None:
        first.answer, second.answer = BusyError("full", retry_after=30), BackPressureError(1, 1)
        with pytest.raises(BusyError):
            await replicas.draw(REQUEST)

    with_replicas(use)


@pytest.mark.parametrize("refusal", [InputError("no"), DeadlineError("too long"), UnavailableError("away")])
def test_what_is_no_want_of_room_is_asked_of_one_replica(refusal: PalimpsestError) -> None:
    async def use(replicas: Replicas, first: Replica, second: Replica) -> None:
        first.answer = refusal
        with pytest.raises(type(refusal)):
            await replicas.draw(REQUEST)
        assert not second.asked

    with_replicas(use)


@pytest.mark.parametrize("streams", [False, True])
def test_where_serve_has_no_room_there_is_some_after_what_a_request_takes(streams: bool) -> None:
    async def refused(replicas: Replicas, replica: Replica) -> float | None:
        replica.answer = BackPressureError(1, 1)
        with pytest.raises(BusyError) as error:
            await replicas.draw(REQUEST)
        replica.answer = DRAWN
        return error.value.retry_after

    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        guess = await refused(replicas, replica)
        replica.seconds = 0.05
        if streams:
            assert [item async for item in replicas.stream(REQUEST)]
        else:
            await replicas.draw(REQUEST)
        after = await refused(replicas, replica)
        assert after
        assert after >= replica.seconds
        assert after != guess

    with_replica(use)
