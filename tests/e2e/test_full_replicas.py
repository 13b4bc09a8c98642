"""Two replicas, of which one is full: whoever comes is drawn by the other one."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from tests.e2e.second import second_application
from tests.house import PATIENCE, House

BODY = {"model": "base", "prompt": "a fox", "steps": 2}
PLACES = 8


@pytest.fixture
def url(house: House) -> Iterator[str]:
    """An application of two replicas with eight places each."""
    with second_application(house, replicas=2, max_batch=2, max_queue=PLACES - 2) as url:
        yield f"{url}/v1/images/generations"


@contextmanager
def filled(url: str, person: str) -> Iterator[None]:
    """While it lasts, a stream of this person's has all places of a replica."""
    body = BODY | {"user": person, "n": PLACES, "steps": 100, "stream": True, "stream_progress": True}
    with requests.post(url, json=body, stream=True, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.text
        lines = response.iter_lines()  # kept: without it the connection would be closed
        next(lines)
        yield


def images(url: str) -> float:
    """Images that are being drawn, or wait."""
    text = requests.get(url.replace("v1/images/generations", "metrics"), timeout=PATIENCE).text
    return sum(map(float, re.findall(r"^palimpsest_(?:running|waiting)_images\S* (\S+)$", text, re.MULTILINE)))


def test_nobody_is_refused_while_a_replica_has_room(url: str) -> None:
    """Serve itself sends them to the full one, which has fewer requests."""

    def ask(number: int) -> int:
        body = BODY | {"user": f"person {number}", "seed": number}
        return requests.post(url, json=body, timeout=PATIENCE).status_code

    with filled(url, "ann"), ThreadPoolExecutor(PLACES) as pool:
        assert list(pool.map(ask, range(PLACES))) == [200] * PLACES
        with filled(url, "bob"):
            answer = requests.post(url, json=BODY, timeout=PATIENCE)
            assert images(url) > PLACES, "both were full to the end"
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert int(answer.headers["Retry-After"]) >= 1
