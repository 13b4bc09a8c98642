"""Real clients of a real server: OpenAI's Python package, and one that hangs up."""

import base64
import inspect
import json
import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from urllib.parse import urlsplit

import openai
import psutil
import pytest
from PIL import Image

from tests.cp_serve.conftest import Serving
from tests.cp_serve.drawings import PATIENCE, Gate
from tests.house import wait_until


@pytest.fixture
def client(api_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def test_openais_client_draws(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="pets",
        prompt="a <fox>",
        n=2,
        size="auto",
        response_format="b64_json",
        output_format="webp",
        quality="hd",
        background="opaque",
        moderation="low",
        output_compression=80,
        style="vivid",
        user="somebody",
        extra_body={"seed": 3, "steps": 2},
    )
    assert answer.data
    assert [one.model_extra for one in answer.data] == [{"seed": 3}, {"seed": 4}]
    for one in answer.data:
        assert one.b64_json
        assert Image.open(BytesIO(base64.b64decode(one.b64_json))).format == "WEBP"
    assert answer.model_extra
    assert answer.model_extra["model"] == "pets@2"
    assert len(answer.model_extra["warnings"]) == 5


def test_every_parameter_of_openais_client_is_accepted(client: openai.OpenAI) -> None:
    ours = {"prompt": "a <fox>", "model": "pets", "n": 1, "size": "auto", "stream": False, "user": "somebody"}
    ours |= {"response_format": "b64_json", "output_format": "png", "partial_images": 0, "extra_body": {"steps": 1}}
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    theirs = [name for name in inspect.signature(openai.resources.Images.generate).parameters if name not in own]
    ignored = {name: "auto" for name in theirs if name not in ours}
    answer = client.images.generate(**ours, **ignored)  # type: ignore[call-overload]
    assert answer.model_extra["warnings"] == [
        *(f"{name} has no effect here." for name in sorted(ignored)),
        "partial_images has no effect without stream.",
    ]


def test_openais_client_lists_models(client: openai.OpenAI) -> None:
    assert {"base", "pets", "pets@2"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("pets@1").id == "pets@1"


def test_openais_client_understands_the_errors(client: openai.OpenAI, serving: Serving) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="<cat> is not a concept") as unknown:
        client.images.generate(model="pets", prompt="a <cat>")
    assert (unknown.value.param, unknown.value.code, unknown.value.type) == (
        "prompt",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError, match="no lineage `nobody`"):
        client.images.generate(model="nobody", prompt="a fox")
    with serving.full(), pytest.raises(openai.InternalServerError) as busy:
        client.images.generate(model="pets", prompt="a <fox>")
    assert busy.value.status_code == 503
    assert busy.value.response.headers["retry-after"]


def test_a_client_that_hangs_up_frees_its_places_within_one_step(serving: Serving, api_url: str) -> None:
    engine, body = serving.denoiser.engine, {"model": "pets", "prompt": "a <fox>", "n": 8, "steps": 100}
    content = json.dumps(body).encode()
    head = ("POST /v1/images/generations HTTP/1.1", "Host: x", "Content-Type: application/json")
    lines = (*head, f"Content-Length: {len(content)}", "", "")
    steps = engine.steps_done
    with Gate(serving.denoiser.base) as gate:
        with socket.create_connection(("127.0.0.1", urlsplit(api_url).port or 0)) as connection:
            connection.sendall("\r\n".join(lines).encode() + content)
            gate.arrived()
            assert engine.load == 8
        wait_until(lambda: engine.load == 0)
        gate.open()
    serving.generate(steps=1)
    assert engine.steps_done - steps == 2, "the step that was on its way, and the next request's"


def test_whoever_hangs_up_again_and_again_leaves_nothing_behind(serving: Serving, api_url: str) -> None:
    denoiser, process = serving.denoiser, psutil.Process()
    engine, port = denoiser.engine, urlsplit(api_url).port or 0

    def hang_up(number: int) -> None:
        """As soon as all is said, when it is being drawn, or in the middle of the answer."""
        streams = bool(number % 2)
        body = {"model": "pets", "prompt": "a <fox>", "n": 1 + number % 3, "steps": 100, "stream": streams}
        content = json.dumps(body).encode()
        head = ("POST /v1/images/generations HTTP/1.1", "Host: x", "Content-Type: application/json")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall("\r\n".join((*head, f"Content-Length: {len(content)}", "", "")).encode() + content)
            if number % 3 == 1:
                wait_until(lambda: engine.load > 0)
            elif number % 3 == 2 and streams:
                assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: engine.load == 0)

    hang_up(5)
    files, threads = process.num_fds(), threading.active_count()
    for number in range(30):
        hang_up(number)
    wait_until(lambda: engine.load == 0 and not denoiser.bank._held)
    wait_until(lambda: process.num_fds() <= files + 4)  # less than one for each who left; others have connections, too
    assert threading.active_count() <= threads + 4, "pools may grow to their size, and no further"
    assert serving.generate(steps=1)
