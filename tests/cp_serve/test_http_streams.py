"""Streams over a real server: OpenAI's client, the events themselves, errors, and a client that hangs up."""

import base64
import json
import socket
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from openai.types import ImageGenPartialImageEvent
from PIL import Image

from tests.cp_serve.conftest import Serving
from tests.cp_serve.drawings import PATIENCE, Gate
from tests.cp_serve.test_http import PATH, PROMPT, refused
from tests.house import wait_until


@pytest.fixture
def client(api_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def events(serving: Serving, **fields: object) -> list[tuple[str, dict[str, Any]]]:
    response = serving.client.post(PATH, json=PROMPT | {"stream": True, "steps": 3, "seed": 7} | fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def picture(data: dict[str, Any]) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data["b64_json"])))


def test_openais_client_streams(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        model="pets", prompt="a <fox>", stream=True, partial_images=2, output_format="webp", extra_body={"steps": 3}
    )
    found = list(stream)
    assert {event.type for event in found[:-1]} == {"image_generation.partial_image"}
    assert [event.partial_image_index for event in found[:-1]] == [0, 1]  # type: ignore[union-attr]
    last = found[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == 0
    for event in found:
        assert Image.open(BytesIO(base64.b64decode(event.b64_json))).format == "WEBP"
        assert (event.size, event.output_format) == ("16x16", "webp")


def test_the_last_event_has_the_picture_that_is_drawn_without_a_stream(serving: Serving) -> None:
    *partial, (name, completed) = events(serving)
    assert name == "image_generation.completed"
    plain = serving.generate(steps=3, seed=7)
    assert completed["b64_json"] == plain["data"][0]["b64_json"]
    assert (completed["model"], completed["digest"], completed["seed"]) == ("pets@2", plain["digest"], 7)
    assert completed["timings"].keys() == plain["timings"].keys()
    assert completed["warnings"] == []
    for kind, data in partial:
        assert kind == data["type"] == "image_generation.partial_image"
        assert 0 < data["step"] <= data["steps"] == 3
        assert picture(data).size == (16, 16)


def test_previews_of_every_picture_or_none_as_asked(serving: Serving) -> None:
    assert [name for name, _ in events(serving, partial_images=0)] == ["image_generation.completed"]
    found = events(serving, n=2, partial_images=3, steps=8)
    partial = [(data["image"], data["partial_image_index"]) for name, data in found if name.endswith("partial_image")]
    assert sorted(partial) == [(image, index) for image in range(2) for index in range(3)]
    completed = [data for name, data in found if name.endswith("completed")]
    assert [(data["image"], data["seed"]) for data in completed] == [(0, 7), (1, 8)]


def test_previews_come_nearer_and_nearer_to_their_own_picture(serving: Serving) -> None:
    def pixels(data: dict[str, Any]) -> Any:
        return np.asarray(picture(data), np.float64)

    found = events(serving, n=2, partial_images=3, steps=8)
    final = {data["image"]: pixels(data) for name, data in found if name.endswith("completed")}
    previews = {
        (data["image"], data["partial_image_index"]): pixels(data)
        for name, data in found
        if name.endswith("partial_image")
    }
    others = [pixels(data) for _, data in events(serving, n=2, partial_images=0, steps=8, prompt="a <robot>")]
    for image, picture_of_fox in final.items():
        apart = [np.abs(previews[image, index] - picture_of_fox).mean() for index in range(3)]
        assert apart == sorted(apart, reverse=True)
        assert apart[-1] < np.abs(others[image] - picture_of_fox).mean() / 10, "of the same seed, and another concept"
        assert apart[-1] < np.abs(previews[1 - image, 2] - picture_of_fox).mean() / 10


def test_openais_client_takes_progress_for_a_preview_without_a_picture(client: openai.OpenAI) -> None:
    """So it is told only to whoever asks."""
    stream = client.images.generate(
        model="pets", prompt="a <fox>", stream=True, partial_images=0, extra_body={"steps": 2, "stream_progress": True}
    )
    *progress, last = stream
    assert {event.type for event in progress} == {"image_generation.progress"}
    assert {(type(event), event.b64_json) for event in progress} == {(ImageGenPartialImageEvent, None)}
    assert last.b64_json


def test_progress_of_every_step_is_told_to_whoever_asks(serving: Serving) -> None:
    found = events(serving, stream_progress=True, partial_images=0, steps=4)
    steps = [data["step"] for name, data in found if name == "image_generation.progress"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4
    assert {data["steps"] for name, data in found if name == "image_generation.progress"} == {4}


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"prompt": "a <cat>"}, 422, "invalid_value", "prompt"),
        ({"model": "nobody"}, 404, "not_found", "model"),
        ({"partial_images": 4}, 422, "invalid_value", "partial_images"),
        ({"response_format": "url"}, 422, "invalid_value", "response_format"),
    ],
)
def test_what_cannot_be_drawn_has_a_status_of_its_own(
    serving: Serving, fields: dict[str, object], status: int, code: str, param: str
) -> None:
    refused(serving.client.post(PATH, json=PROMPT | {"stream": True} | fields), status, code, param, "")


def test_a_stream_has_no_second_answer(serving: Serving) -> None:
    response = serving.client.post(PATH, json=PROMPT | {"stream": True}, headers={"Idempotency-Key": "a"})
    refused(response, 422, "invalid_value", "Idempotency-Key", "second time")


def test_an_error_within_a_stream_is_an_event_in_openais_shape(client: openai.OpenAI, serving: Serving) -> None:
    stream = client.images.generate(
        model="pets", prompt="a <fox>", stream=True, extra_body={"steps": 5, "stream_progress": True}
    )
    next(stream)

    def fail(*_: object) -> None:
        raise RuntimeError

    hook = serving.denoiser.base.unet.register_forward_pre_hook(fail)
    vae = serving.denoiser.base.vae.decoder.register_forward_pre_hook(fail)
    try:
        with pytest.raises(openai.APIError, match="went wrong on our side"):
            list(stream)
    finally:
        hook.remove()
        vae.remove()
    assert serving.generate()


def test_a_replica_that_dies_within_a_stream_is_not_noticed(serving: Serving) -> None:
    expected = events(serving, partial_images=0)
    serving.handle.deaths = 2
    found = events(serving, partial_images=0)
    assert serving.handle.deaths <= 0
    serving.handle.deaths = 0
    (_, before), (_, after) = expected[-1], found[-1]
    assert before["b64_json"] == after["b64_json"]


def test_whoever_hangs_up_in_a_stream_frees_his_places_within_one_step(serving: Serving, api_url: str) -> None:
    engine = serving.denoiser.engine
    body = {**PROMPT, "n": 4, "steps": 100, "stream": True, "stream_progress": True, "partial_images": 0}
    content = json.dumps(body).encode()
    head = (f"POST {PATH} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(content)}")
    with Gate(serving.denoiser.base) as gate:
        with socket.create_connection(("127.0.0.1", urlsplit(api_url).port or 0)) as connection:
            connection.sendall("\r\n".join((*head, "", "")).encode() + content)
            gate.arrived()
            gate.let(3)
            assert connection.recv(12) == b"HTTP/1.1 200"
            for _ in range(3):
                gate.arrived()
            assert engine.load == 4
            steps = engine.steps_done
        wait_until(lambda: engine.load == 0)
        gate.open()
    serving.generate(steps=1)
    assert engine.steps_done - steps == 2, "the step that was on its way, and the next request's"
