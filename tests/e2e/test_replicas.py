"""A replica is killed under load, and streams go through Serve: nothing is lost, nothing draws for nobody."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from services.local_stack import ray_folder
from tests.house import PATIENCE, House, wait_until

BODY = {"model": "base", "prompt": "a fox", "steps": 30, "response_format": "b64_json"}


def generate(house: House, seed: int, **fields: object) -> requests.Response:
    body = BODY | {"seed": seed} | fields
    return requests.post(f"{house.settings.api}/v1/images/generations", json=body, timeout=PATIENCE)


def test_a_killed_replica_loses_no_request(house: House) -> None:
    expected = generate(house, 0).json()["data"]
    (replica,) = house.denoisers()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(generate, house, seed) for seed in range(8)]
        wait_until(lambda: house.client.ready()["load"] > 0)
        replica.kill()
        answers = [request.result() for request in asked]
    assert [answer.status_code for answer in answers] == [200] * 8, [answer.text[:300] for answer in answers]
    assert house.denoisers()[0].pid != replica.pid
    assert generate(house, 0).json()["data"] == expected


def test_a_stream_comes_through_serve_as_it_is_drawn(house: House) -> None:
    fields = {"stream": True, "stream_progress": True, "partial_images": 1}
    with requests.post(
        f"{house.settings.api}/v1/images/generations", json=BODY | {"seed": 1} | fields, stream=True, timeout=PATIENCE
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        found = [
            json.loads(line.removeprefix("data: "))
            for line in response.iter_lines(decode_unicode=True)
            if line.startswith("data: ")
        ]
    kinds = [event["type"].removeprefix("image_generation.") for event in found]
    assert kinds[-1] == "completed"
    assert kinds.count("partial_image") == 1
    assert kinds.count("progress") >= 2
    assert found[-1]["b64_json"] == generate(house, 1).json()["data"][0]["b64_json"]


def test_whoever_leaves_a_stream_frees_his_places(house: House) -> None:
    body = BODY | {"steps": 100, "n": 8, "stream": True, "stream_progress": True}
    with requests.post(
        f"{house.settings.api}/v1/images/generations", json=body, stream=True, timeout=PATIENCE
    ) as response:
        assert response.status_code == 200, response.text
        lines = response.iter_lines()  # kept: without it the connection would be closed
        next(lines)
        assert house.client.ready()["load"] == 8
    wait_until(lambda: house.client.ready()["load"] == 0)


def test_whoever_hangs_up_frees_his_places(house: House) -> None:
    """What was asked for as one answer, through Serve's proxy."""
    content = json.dumps(BODY | {"steps": 100, "n": 8}).encode()
    head = ("POST /v1/images/generations HTTP/1.1", "Host: x", "Content-Type: application/json")
    lines = (*head, f"Content-Length: {len(content)}", "", "")
    before = steps(house)
    with socket.create_connection((house.settings.host, house.settings.http_port)) as connection:
        connection.sendall("\r\n".join(lines).encode() + content)
        wait_until(lambda: house.client.ready()["load"] == 8)
    wait_until(lambda: house.client.ready()["load"] == 0)
    assert steps(house) - before < 100, "it was not drawn to its end"


def steps(house: House) -> float:
    """Denoising steps so far."""
    text = requests.get(f"{house.settings.api}/metrics", timeout=PATIENCE).text
    return sum(map(float, re.findall(r"^palimpsest_steps_total\S* (\S+)$", text, re.MULTILINE)))


@pytest.mark.parametrize(("given", "taken"), [("my-id.1", True), ("x" * 129, False), ("", False)])
def test_an_answer_has_the_id_that_is_in_the_log(house: House, given: str, taken: bool) -> None:
    """Serve's proxy would put whatever was given on the answer."""
    response = requests.get(f"{house.settings.api}/v1/models", headers={"X-Request-Id": given}, timeout=PATIENCE)
    answered = response.headers["X-Request-Id"]
    assert answered == given if taken else re.fullmatch("req-[0-9a-f]{32}", answered)
    logs = ray_folder(house.settings) / "session_latest" / "logs"
    wait_until(lambda: any("/v1/models 200" in line and line.endswith(f"[{answered}]") for line in _lines(logs)))


def _lines(logs: Path) -> Iterator[str]:
    for path in logs.glob("worker-*.err"):
        yield from path.read_text(errors="replace").splitlines()


def test_figures_of_every_process_are_in_one_place(house: House) -> None:
    text = requests.get(f"{house.settings.api}/metrics", timeout=PATIENCE).text
    assert "palimpsest_http_requests_total" in text
    assert "palimpsest_steps_total" in text


def test_of_a_replica_that_hangs_it_is_said(house: House) -> None:
    (replica,) = house.denoisers()
    replica.suspend()
    try:
        text = requests.get(f"{house.settings.api}/metrics", timeout=PATIENCE).text
        assert "palimpsest_http_silent_replicas 1.0" in text
    finally:
        replica.resume()
    wait_until(lambda: "palimpsest_steps_total" in requests.get(f"{house.settings.api}/metrics", timeout=PATIENCE).text)
