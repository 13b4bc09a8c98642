"""A replica: deadlines, cancellation, and overload, on its own event loop as Ray runs it."""

import asyncio
import logging
import pickle
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from cp_serve.denoiser import Denoiser, Drawn, DrawRequest, Progress
from cp_serve.fairness import Pace
from services.errors import BusyError, DeadlineError, InputError, NotFoundError, PalimpsestError, UnavailableError
from services.settings import Settings
from services.telemetry import Carried
from tests.cp_serve.conftest import Serving
from tests.cp_serve.drawings import PATIENCE, Gate
from tests.proxy import Proxy

REQUEST = DrawRequest(
    lineage="base",
    version="live",
    prompt="a fox",
    negative_prompt="",
    seeds=(1, 2),
    steps=3,
    guidance=5.0,
    sampler="ddim",
    size="auto",
)
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture
def denoiser(serving: Serving) -> Iterator[Denoiser]:
    yield serving.denoiser
    assert serving.denoiser.engine.load == 0
    assert isinstance(run(serving.denoiser.draw(REQUEST)), Drawn), "it draws on, whatever happened"


@contextmanager
def deadline(denoiser: Denoiser, seconds: float) -> Iterator[None]:
    """While it lasts, requests that are let in have so long."""
    patient = denoiser.settings
    denoiser.settings = patient.model_copy(update={"deadline_seconds": seconds})
    denoiser.engine.pace = Pace()  # as if every step were quick: nobody is refused for what earlier tests took
    yield
    denoiser.settings = patient


def test_past_its_deadline_a_request_is_given_up(denoiser: Denoiser) -> None:
    steps = denoiser.engine.steps_done
    with Gate(denoiser.base), deadline(denoiser, 0.3):
        assert isinstance(run(denoiser.draw(REQUEST)), DeadlineError)
        assert denoiser.engine.load == 0, "its places are free although the step is still on its way"
    assert isinstance(run(denoiser.draw(replace(REQUEST, steps=1))), Drawn)
    assert denoiser.engine.steps_done - steps <= 2, "nothing of it was drawn on"


def test_a_deadline_passes_while_waiting_too(denoiser: Denoiser) -> None:
    async def two() -> tuple[object, object]:
        full = replace(REQUEST, seeds=tuple(range(denoiser.engine.max_batch)))
        first = asyncio.create_task(denoiser.draw(full))
        await asyncio.to_thread(gate.arrived)
        with deadline(denoiser, 0.1):
            second = await denoiser.draw(REQUEST)
        gate.open()
        return await first, second

    with Gate(denoiser.base) as gate:
        first, second = run(two())
    assert isinstance(first, Drawn)
    assert isinstance(second, DeadlineError)


def test_a_cancelled_request_frees_its_places(denoiser: Denoiser) -> None:
    steps = denoiser.engine.steps_done

    async def leave() -> None:
        drawing = asyncio.create_task(denoiser.draw(replace(REQUEST, steps=100)))
        await asyncio.to_thread(gate.arrived)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        assert denoiser.engine.load == 0
        gate.open()

    with Gate(denoiser.base) as gate:
        run(leave())
    assert isinstance(run(denoiser.draw(replace(REQUEST, steps=1))), Drawn)
    assert denoiser.engine.steps_done - steps == 2


def test_overload_is_refused_before_any_work(denoiser: Denoiser) -> None:
    room = denoiser.engine.max_batch + denoiser.engine.max_queue

    async def overload() -> list[Drawn | PalimpsestError]:
        asked = [asyncio.create_task(denoiser.draw(REQUEST)) for _ in range(room // 2 + 5)]
        refused, rest = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        answers = [task.result() for task in refused]
        gate.open()
        return answers + [await task for task in rest]

    with Gate(denoiser.base) as gate:
        answers = run(overload())
    assert sum(isinstance(answer, BusyError) for answer in answers) == 5
    assert sum(isinstance(answer, Drawn) for answer in answers) == room // 2


def test_what_is_wrong_is_an_answer_that_can_cross_processes(denoiser: Denoiser) -> None:
    wrong = {
        InputError: replace(REQUEST, prompt="a <cat>"),
        NotFoundError: replace(REQUEST, lineage="nobody"),
    }
    for kind, request in wrong.items():
        answer = run(denoiser.draw(request))
        assert isinstance(answer, kind)
        copy = pickle.loads(pickle.dumps(answer))  # noqa: S301
        assert (type(copy), copy.message, copy.param) == (kind, answer.message, answer.param)


def test_what_nobody_foresaw_is_not_raised_to_ray_which_would_log_its_text(
    denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret prompt")

    hook = denoiser.base.text_encoder.register_forward_pre_hook(fail)
    log = logging.getLogger("palimpsest")
    log.propagate = True
    try:
        answer = run(denoiser.draw(replace(REQUEST, prompt="never seen before", carried=Carried("id-7"))))
    finally:
        hook.remove()
        log.propagate = False
    assert type(answer) is PalimpsestError
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "RuntimeError at test_denoiser.py" in caplog.text
    assert "secret" not in answer.message + caplog.text


def test_no_repr_holds_a_prompt_or_a_picture() -> None:
    picture = np.full((1, 1, 3), 77, np.uint8)
    assert "fox" not in repr(REQUEST)
    assert "77" not in repr(Drawn([picture], "base", "sha256:0", {}))
    assert "77" not in repr(Progress(1, 2, "base", 0, 0, picture))


def test_a_cold_version_is_loaded_while_others_draw(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, asked, go_on = denoiser.registry.fetch, threading.Event(), threading.Event()

    def slowly(lineage: str, number: int, **of: Any) -> Any:
        if lineage != "cold":
            return fetch(lineage, number, **of)
        asked.set()
        assert go_on.wait(PATIENCE)
        return fetch("pets", number, **of)

    async def both() -> None:
        cold = asyncio.create_task(denoiser.draw(replace(REQUEST, lineage="cold", version="1", prompt="a <fox>")))
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        assert isinstance(await denoiser.draw(REQUEST), Drawn)
        assert not cold.done()
        go_on.set()
        answer = await cold
        assert isinstance(answer, Drawn)
        assert answer.model == "cold@1"

    monkeypatch.setattr(denoiser.registry, "fetch", slowly)
    try:
        run(both())
    finally:
        go_on.set()


def test_a_replica_serves_through_an_outage_and_only_starts_with_a_registry(
    serving: Serving, serving_settings: Settings
) -> None:
    pets = replace(REQUEST, lineage="pets", prompt="a <fox>")

    async def outage() -> None:
        network.down()
        starting = asyncio.create_task(asyncio.to_thread(Denoiser, far))
        done, _ = await asyncio.wait({starting}, timeout=1)
        assert not done, "it is not ready before it has seen the registry"
        await asyncio.to_thread(network.up)
        denoiser = await starting
        try:
            network.down()
            assert isinstance(await denoiser.draw(pets), Drawn)
            assert isinstance(await denoiser.draw(replace(pets, version="1")), UnavailableError)
            denoiser.check_health()
            network.up()
            answer = await denoiser.draw(replace(pets, version="1"))
            assert isinstance(answer, Drawn)
            assert answer.model == "pets@1"
        finally:
            await asyncio.to_thread(denoiser.close)
        assert not denoiser.engine.alive
        with pytest.raises(RuntimeError, match="thread of this replica died"):
            denoiser.check_health()

    with Proxy(serving_settings.mlflow) as network:
        far = serving_settings.model_copy(update={"mlflow_uri": network.endpoint})
        run(outage())
