"""What the ingress does when a replica dies, is full or says no. The replica here is small; a real one is in e2e."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, RaySystemError
from ray.serve._private.common import DeploymentID
from ray.serve._private.replica_result import ActorReplicaResult
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentBroadcastResponse

from cp_serve.replicas import Replicas
from cp_serve.requests import Drawn, DrawRequest, Progress, ReplicaDiedError
from cp_serve.traffic import Traffic
from services.errors import BusyError, DeadlineError, InputError, PalimpsestError, UnavailableError
from services.telemetry import Carried, continuing
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.handles import Handle

T = TypeVar("T")
REQUEST = DrawRequest(
    lineage="base",
    version="live",
    prompt="a fox",
    negative_prompt="",
    seeds=(1,),
    steps=3,
    guidance=5.0,
    sampler="ddim",
    size="auto",
)
DRAWN = Drawn([np.zeros((2, 2, 3), np.uint8)], "base", "sha256:0", {})


class Replica:
    """Draws nothing, in as many steps as it is asked for; what it was asked and what was closed is kept."""

    def __init__(self) -> None:
        self.asked: list[DrawRequest] = []
        self.closed = 0
        self.model = "base"
        self.answer: Drawn | PalimpsestError | Exception = DRAWN
        self.hang = False
        self.seconds = 0.0

    async def draw(self, request: DrawRequest) -> Drawn | PalimpsestError:
        self.asked.append(request)
        await asyncio.sleep(self.seconds)
        if self.hang:
            try:
                await asyncio.Event().wait()
            finally:
                self.closed += 1
        if isinstance(self.answer, Exception) and not isinstance(self.answer, PalimpsestError):
            raise self.answer
        return self.answer

    async def stream(self, request: DrawRequest) -> AsyncGenerator[Progress | Drawn | PalimpsestError, None]:
        self.asked.append(request)
        try:
            for step in range(request.steps):
                await asyncio.sleep(0)
                yield Progress(step, request.steps, self.model)
            if self.hang:
                await asyncio.Event().wait()
            yield await self.draw(request)
        finally:
            self.closed += 1

    async def status(self) -> dict[str, object]:
        await self.draw(REQUEST)
        return {"load": 0}

    async def load(self, lineage: str, number: int) -> PalimpsestError | None:
        assert (lineage, number) == ("pets", 1)
        if isinstance(self.answer, MemoryError):
            raise self.answer
        return self.answer if isinstance(self.answer, PalimpsestError) else None


def with_replica(
    use: Callable[[Replicas, Replica, Handle], Coroutine[Any, Any, T]], *, deadline: float = PATIENCE
) -> T:
    async def run() -> T:
        replica = Replica()
        handle = Handle(replica)
        replicas = Replicas(handle, Traffic(), deadline_seconds=deadline)
        return await asyncio.wait_for(use(replicas, replica, handle), PATIENCE)

    return asyncio.run(run())


def test_a_request_whose_replica_died_is_asked_of_another() -> None:
    async def use(replicas: Replicas, replica: Replica, handle: Handle) -> None:
        handle.deaths = 3
        assert (await replicas.draw(REQUEST)).model == "base"
        assert handle.deaths == -1
        assert len(replica.asked) == 1

    with_replica(use)


def test_a_stream_goes_on_where_it_was() -> None:
    async def use(replicas: Replicas, replica: Replica, handle: Handle) -> None:
        handle.deaths = 2
        items = [item async for item in replicas.stream(REQUEST)]
        assert [item.step for item in items if isinstance(item, Progress)] == [0, 1, 2]
        assert isinstance(items[-1], Drawn)
        assert len(items) == 4
        assert replica.closed == 3

    with_replica(use)


def test_a_stream_goes_on_with_the_version_that_it_began_with() -> None:
    async def use(replicas: Replicas, replica: Replica, handle: Handle) -> None:
        handle.deaths, replica.model = 1, "pets@7"
        async for _item in replicas.stream(replace(REQUEST, lineage="pets")):
            pass
        first, *again = {(request.lineage, request.version): None for request in replica.asked}
        assert first == ("pets", "live")
        assert again == [("pets", "7")], "wherever `live` is now"

    with_replica(use)


def test_what_was_given_up_on_is_cancelled_wherever_it_waits() -> None:
    """Also where Serve has not given it to a replica yet: it would be drawn for nobody."""

    class Queued:
        cancelled = False

        def __await__(self) -> Generator[Any, None, None]:
            yield from asyncio.Event().wait().__await__()

        def cancel(self) -> None:
            self.cancelled = True

    async def use(replicas: Replicas, _replica: Replica, handle: Handle) -> None:
        call = Queued()
        monkeypatch.setattr(handle, "draw", SimpleNamespace(remote=lambda _: call), raising=False)
        with pytest.raises(DeadlineError):
            await replicas.draw(REQUEST)
        assert call.cancelled

    with pytest.MonkeyPatch.context() as monkeypatch:
        with_replica(use, deadline=0.05)


def test_a_replica_is_told_which_request_it_works_for() -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        with continuing(Carried("id-1")):
            await replicas.draw(REQUEST)
            [item async for item in replicas.stream(REQUEST)]
        assert {request.carried.request_id for request in replica.asked} == {"id-1"}

    with_replica(use)


def test_a_repeated_request_has_only_the_time_that_is_left() -> None:
    async def use(replicas: Replicas, replica: Replica, handle: Handle) -> None:
        handle.deaths = 3
        await replicas.draw(replace(REQUEST, deadline_seconds=30))
        (asked,) = replica.asked
        assert asked.deadline_seconds is not None
        assert asked.deadline_seconds < 29.5
        await replicas.draw(replace(REQUEST, deadline_seconds=1e6))
        assert replica.asked[-1].deadline_seconds <= PATIENCE  # type: ignore[operator]

    with_replica(use)


def test_when_all_die_one_after_the_other_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cp_serve.replicas._PAUSES", (0.0, 0.0))

    async def use(replicas: Replicas, _: Replica, handle: Handle) -> None:
        handle.deaths = 100
        with pytest.raises(UnavailableError, match="restarting") as error:
            await replicas.draw(REQUEST)
        assert error.value.retry_after
        with pytest.raises(UnavailableError, match="restarting"):
            async for _item in replicas.stream(REQUEST):
                pass
        assert handle.deaths == 100 - 2 * 3

    with_replica(use)


def test_a_replica_that_says_nothing_is_given_up_on_at_the_deadline() -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        replica.hang = True
        with pytest.raises(DeadlineError):
            await replicas.draw(REQUEST)
        with pytest.raises(DeadlineError):
            [item async for item in replicas.stream(REQUEST)]
        while replica.closed < 2:
            await asyncio.sleep(0)

    with_replica(use, deadline=0.05)


def test_nobody_waits_nobody_draws() -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        replica.hang = True
        drawing = asyncio.create_task(replicas.draw(REQUEST))
        stream = replicas.stream(REQUEST)
        await anext(stream)
        await stream.aclose()
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        while replica.closed < 2:
            await asyncio.sleep(0)

    with_replica(use)


def test_what_a_replica_refuses_is_raised_and_never_asked_again() -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        replica.answer = InputError("no", param="prompt")
        with pytest.raises(InputError, match="no"):
            await replicas.draw(REQUEST)
        with pytest.raises(InputError, match="no"):
            [item async for item in replicas.stream(REQUEST)]
        with pytest.raises(InputError, match="no"):
            await replicas.everywhere("load", "pets", 1, patience=PATIENCE)
        assert len(replica.asked) == 3
        replica.answer = DRAWN
        assert await replicas.everywhere("load", "pets", 1, patience=PATIENCE) == [None]
        replica.answer = MemoryError()
        with pytest.raises(PalimpsestError, match="Something went wrong"):
            await replicas.everywhere("load", "pets", 1, patience=PATIENCE)

    with_replica(use)


def test_what_is_ready_is_delivered_however_slowly_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cp_serve.replicas._GRACE", 0.5)

    async def use(replicas: Replicas, _: Replica, __: Handle) -> None:
        stream = replicas.stream(REQUEST)
        assert isinstance(await anext(stream), Progress)
        await asyncio.sleep(0.7)
        assert isinstance([item async for item in stream][-1], Drawn)

    with_replica(use, deadline=0.1)


class Hanging:
    """A replica that answers nothing."""

    def __init__(self) -> None:
        self.asked = self.left = 0

    async def load(self, *_: object) -> None:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1

    hint = load


def test_one_replica_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cp_serve.replicas._SLACK", 0.05)

    async def use() -> None:
        hanging, traffic = Hanging(), Traffic()
        replicas = Replicas(Handle(hanging, Replica(), Replica()), traffic, deadline_seconds=PATIENCE)
        assert await replicas.everywhere("load", "pets", 1, patience=10 * PATIENCE) == [None, None]
        assert _silent(traffic) == 1
        while not hanging.left:  # nobody waits for it any more
            await asyncio.sleep(0)
        replicas = Replicas(Handle(hanging), traffic, deadline_seconds=PATIENCE)
        with pytest.raises(UnavailableError, match="restarting"):
            await replicas.everywhere("load", "pets", 1, patience=0.05)
        assert _silent(traffic) == 1
        replicas = Replicas(Handle(Replica()), traffic, deadline_seconds=PATIENCE)
        assert await replicas.everywhere("load", "pets", 1, patience=PATIENCE) == [None]
        assert _silent(traffic) == 0

    asyncio.run(asyncio.wait_for(use(), PATIENCE))


def test_ray_has_what_calls_of_all_replicas_stand_on() -> None:
    """Its public call waits for every replica, so `Replicas` asks for the calls themselves."""
    assert inspect.iscoroutinefunction(DeploymentBroadcastResponse._fetch_replica_results_async)
    assert inspect.iscoroutinefunction(ActorReplicaResult.get_async)


def test_a_replica_that_died_does_not_set_the_pace_for_one_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cp_serve.replicas._SLACK", 0.0)

    class Dead:
        async def load(self, *_: object) -> None:
            raise ActorUnavailableError("gone", b"\0" * 16)

    class Slow:
        async def load(self, *_: object) -> str:
            await asyncio.sleep(0.2)
            return "loaded"

    async def use() -> None:
        replicas = Replicas(Handle(Dead(), Slow()), Traffic(), deadline_seconds=PATIENCE)
        assert await replicas.everywhere("load", patience=PATIENCE) == ["loaded"]

    asyncio.run(asyncio.wait_for(use(), PATIENCE))


def test_a_hint_reaches_all_and_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hinted:
        hints = 0

        async def hint(self) -> None:
            self.hints += 1

    class Gone(Handle):
        def broadcast(self, *_: object) -> Any:
            raise DeploymentUnavailableError(DeploymentID("denoiser"))

    async def use() -> None:
        hanging, hinted = Hanging(), Hinted()
        Replicas(Handle(hanging, hinted), Traffic(), deadline_seconds=PATIENCE).hint()
        while not (hanging.asked and hinted.hints):
            await asyncio.sleep(0)
        nobody = Replicas(Gone(None), Traffic(), deadline_seconds=PATIENCE)
        nobody.hint()
        while nobody._hints:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(use(), PATIENCE))


def _silent(traffic: Traffic) -> float:
    samples = (sample for family in traffic.collect() for sample in family.samples)
    return next(sample.value for sample in samples if sample.name == "palimpsest_http_silent_replicas")


def test_a_replica_whose_threads_died_is_as_one_that_died() -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        replica.answer = ReplicaDiedError("died")
        drawing = asyncio.create_task(replicas.draw(REQUEST))
        while len(replica.asked) < 2:
            await asyncio.sleep(0.01)
        replica.answer = DRAWN
        assert (await drawing).digest == DRAWN.digest

    with_replica(use)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BackPressureError(1, 1), BusyError), (RaySystemError("x"), UnavailableError), (ValueError("x"), ValueError)],
)
def test_rays_errors_become_ours_and_others_pass(error: Exception, kind: type[Exception]) -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        replica.answer = error
        with pytest.raises(kind):
            await replicas.draw(REQUEST)

    with_replica(use)


def test_every_kind_of_death_is_one() -> None:
    async def use(replicas: Replicas, replica: Replica, _: Handle) -> None:
        replica.answer = ActorUnavailableError("gone", b"\0" * 16)
        drawing = asyncio.create_task(replicas.draw(REQUEST))
        while not replica.asked:
            await asyncio.sleep(0)
        replica.answer = DRAWN
        assert isinstance(await drawing, Drawn)

    with_replica(use)
