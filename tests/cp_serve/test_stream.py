"""A replica's other answers: streams, classification, canaries and metrics."""

import asyncio
import pickle
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from cp_serve.bank import Slot
from cp_serve.denoiser import Classified, ClassifyRequest, Denoiser, Drawn, DrawRequest, Progress
from cp_serve.metrics import merge
from cp_serve.progress import Watch, preview_steps
from cp_serve.requests import Picture
from services.canary import CANARY
from services.errors import DeadlineError, InputError, NotFoundError, PalimpsestError
from tests.cp_serve.conftest import Serving
from tests.cp_serve.drawings import NEAR, PATIENCE
from tests.cp_serve.test_denoiser import REQUEST
from tests.cp_serve.versions import adapter_of, publish
from tests.house import wait_until

T = TypeVar("T")
PETS = replace(REQUEST, lineage="pets", prompt="a <fox>", seeds=(1,))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def drawn(denoiser: Denoiser, request: Any) -> Drawn:
    answer = run(denoiser.draw(request))
    assert isinstance(answer, Drawn), answer
    return answer


def apart(one: Picture, other: Picture) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


async def all_of(denoiser: Denoiser, request: Any) -> list[Progress | Drawn | PalimpsestError]:
    return [item async for item in denoiser.stream(request)]


def test_a_stream_tells_of_every_step_and_ends_with_the_pictures(serving: Serving) -> None:
    request = replace(REQUEST, seeds=(1, 2), steps=6, previews=2)
    *news, answer = run(all_of(serving.denoiser, request))
    assert all(isinstance(item, Progress) and item.steps == 6 and item.model == "base" for item in news)
    told = [item.step for item in news if isinstance(item, Progress) and item.preview is None]
    assert told == [1, 2, 3, 4, 5, 6]
    previews = {(item.image, item.index): item.preview for item in news if isinstance(item, Progress)}
    previews.pop((None, None))
    assert previews.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert isinstance(answer, Drawn)
    for image, picture in enumerate(answer.pictures):
        late = previews[image, 1]
        assert late is not None
        assert late.shape == picture.shape
        assert apart(picture, drawn(serving.denoiser, request).pictures[image]) <= NEAR
    assert pickle.loads(pickle.dumps(news[0])) == news[0]  # noqa: S301


def test_an_error_is_a_streams_last_word(serving: Serving) -> None:
    (answer,) = run(all_of(serving.denoiser, replace(REQUEST, prompt="a <cat>")))
    assert isinstance(answer, InputError)
    (late,) = run(all_of(serving.denoiser, replace(REQUEST, steps=100, deadline_seconds=1e-6)))
    assert isinstance(late, DeadlineError)


def test_closing_a_stream_frees_its_places(serving: Serving) -> None:
    async def leave() -> None:
        stream = serving.denoiser.stream(replace(REQUEST, steps=100))
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)
        assert serving.denoiser.engine.load == 0

    run(leave())


def test_a_preview_tells_of_its_own_step_however_late_it_comes() -> None:
    async def watch() -> list[tuple[int, int | None]]:
        news = Watch(replace(REQUEST, seeds=(1, 2), steps=4, previews=1), asyncio.get_running_loop())
        drawings = [SimpleNamespace() for _ in range(2)]
        news.attach(drawings, "base")  # type: ignore[arg-type]
        (first,) = drawings[0].previews
        for step in (1, 2, 3):
            for drawing in drawings:
                drawing.report(step, None)
        drawings[1].report(first, torch.zeros(2, 2, 3))
        await asyncio.sleep(0)
        news.end()
        return [(item.step, item.index) async for item in news]

    first = preview_steps(4, 1)[0]
    assert asyncio.run(watch()) == [(1, None), (2, None), (3, None), (first, 0)]


def test_partial_pictures_are_evenly_spread() -> None:
    assert preview_steps(20, 0) == ()
    assert preview_steps(20, 3) == (5, 10, 15)
    assert preview_steps(2, 3) == (1,)
    assert preview_steps(1, 3) == ()


def test_classification_is_a_distribution_over_concepts_and_none(serving: Serving) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    request = ClassifyRequest(lineage="pets", version="2", picture=picture, trials=4)
    found = run(serving.denoiser.classify(request))
    assert isinstance(found, Classified)
    assert list(found.probabilities) == ["fox", "robot", "none"]
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert found.model == "pets@2"
    again = run(serving.denoiser.classify(request))
    assert isinstance(again, Classified)
    assert again.probabilities == found.probabilities
    assert isinstance(run(serving.denoiser.classify(replace(request, lineage="base"))), InputError)
    assert isinstance(run(serving.denoiser.classify(replace(request, lineage="nobody"))), NotFoundError)


@pytest.fixture
def canary(serving: Serving) -> Iterator[str]:
    """A lineage whose version 1 is live and whose version 2 gets half of the requests."""
    registry, base = serving.registry, serving.denoiser.base
    publish(registry, "wild", base, adapter_of(base, {"fox": 1}, seed=1))
    publish(registry, "wild", base, adapter_of(base, {"robot": 1}, seed=2), live=False)
    registry.set_canary("wild", 2, 50)
    serving.await_live("wild", 1)
    rollout = serving.denoiser.follower.rollout
    wait_until(lambda: "wild" in rollout._trials)  # a pick would take the first turn of two
    yield "wild"
    registry.end_canary("wild")


def test_a_canary_draws_its_share_until_it_fails(
    serving: Serving, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, condition = serving.denoiser, serving.denoiser._condition

    def break_down(request: DrawRequest, slot: Slot | None) -> torch.Tensor:
        if slot and slot.model == "wild@2":
            raise RuntimeError
        return condition(request, slot)

    robots = [run(denoiser.draw(replace(REQUEST, lineage=canary, prompt="a robot", steps=1))) for _ in range(8)]
    models = [answer.model for answer in robots if isinstance(answer, Drawn)]
    assert sorted(models) == ["wild@1"] * 4 + ["wild@2"] * 4
    misspelt = [run(denoiser.draw(replace(REQUEST, lineage=canary, prompt="a <robto>"))) for _ in range(24)]
    assert all(isinstance(answer, InputError) for answer in misspelt)
    monkeypatch.setattr(denoiser, "_condition", break_down)
    later = [run(denoiser.draw(replace(REQUEST, lineage=canary, prompt="a robot", steps=1))) for _ in range(24)]
    assert 4 <= sum(isinstance(answer, PalimpsestError) for answer in later) <= 9
    assert all(isinstance(answer, Drawn) for answer in later[-4:]), "it draws no more"
    wait_until(lambda: CANARY not in serving.registry.aliases(canary))
    assert serving.registry.canary(canary) is None


def test_metrics_of_replicas_are_one_exposition(serving: Serving) -> None:
    drawn(serving.denoiser, PETS)
    page = pickle.loads(pickle.dumps(run(serving.denoiser.metrics())))  # noqa: S301
    merged = {family.name: family for family in merge([page, page])}
    requests = [s for s in merged["palimpsest_requests"].samples if s.labels.get("lineage") == "pets"]
    assert {(s.labels["arm"], s.labels["outcome"]) for s in requests} >= {("live", "drawn")}
    assert all(sample.labels["replica"] for family in page for sample in family.samples)
    steps = [s for s in merged["palimpsest_step_seconds"].samples if s.name.endswith("_count")]
    assert len(steps) == 2
    assert steps[0].value > 0
    assert merged["palimpsest_bank_versions"].samples[0].value > 0


def test_flips_under_load_tear_no_picture_and_fail_no_request(serving: Serving) -> None:
    """Every answer's stated version is the one whose weights drew it; a flip that is waited for takes effect."""
    denoiser, followed, hurried = serving.denoiser, 20, 20
    expected = {number: drawn(denoiser, replace(PETS, version=str(number))).pictures[0] for number in (1, 2)}
    assert apart(expected[1], expected[2]) > 2 * NEAR
    client, flipped = serving.registry._client, threading.Event()

    def move(number: int) -> None:
        client.set_registered_model_alias("pets", "live", str(number))
        denoiser.follower.hint()

    def flip() -> None:
        try:
            for flips in range(followed):
                move(1 + flips % 2)
                serving.await_live("pets", 1 + flips % 2)
            for flips in range(hurried):
                move(1 + flips % 2)
        finally:
            flipped.set()

    async def ask() -> list[Drawn | PalimpsestError]:
        answers = []
        while not flipped.is_set():
            answers += await asyncio.gather(*(denoiser.draw(PETS) for _ in range(6)))
        return answers

    swaps = value(denoiser, "palimpsest_swaps_total")
    with ThreadPoolExecutor(1) as pool:
        flipping = pool.submit(flip)
        answers = asyncio.run(ask())
        flipping.result()
    for answer in answers:
        assert isinstance(answer, Drawn), answer
        number = int(answer.model.removeprefix("pets@"))
        assert apart(answer.pictures[0], expected[number]) <= NEAR, answer.model
    assert value(denoiser, "palimpsest_swaps_total") >= swaps + followed
    serving.await_live("pets", 2)


def value(denoiser: Denoiser, name: str) -> float:
    return float(next(s.value for family in run(denoiser.metrics()) for s in family.samples if s.name == name))
