"""Load makes the denoiser grow, and quiet makes it shrink; no request is lost, not even to a replica that dies."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.e2e.second import NAME, second_application
from tests.house import PATIENCE, House, wait_until


@pytest.fixture
def url(house: House) -> Iterator[str]:
    """An application with a small batch, that may grow to two replicas."""
    with second_application(house, max_replicas=2, max_batch=2, downscale_seconds=1) as url:
        yield url


def replicas(url: str) -> int:
    """Denoisers that are ready: each tells its own figures."""
    text = requests.get(f"{url}/metrics", timeout=PATIENCE).text
    return len(set(re.findall(r'^palimpsest_steps_total{replica="(\w+)"}', text, re.MULTILINE)))


def test_a_few_who_want_many_pictures_at_once_make_it_grow(url: str) -> None:
    """Two requests: fewer than a replica may have, of more images than it draws at once."""
    done, answers = threading.Event(), []

    def draw_on(person: int) -> None:
        body = {"model": "base", "prompt": "a fox", "steps": 20, "n": 8, "user": f"person {person}"}
        while not done.is_set():
            answers.append(requests.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE).status_code)

    with ThreadPoolExecutor(2) as pool:
        try:
            drawing = [pool.submit(draw_on, person) for person in range(2)]
            wait_until(lambda: replicas(url) == 2)
        finally:
            done.set()
        for future in drawing:
            future.result()
    assert set(answers) == {200}


def test_the_denoiser_grows_with_the_load_and_shrinks_without_it(house: House, url: str) -> None:
    answers: Counter[int] = Counter()
    lock, crowd, everybody = threading.Lock(), threading.Event(), threading.Event()

    def draw_on(person: int, leave: threading.Event) -> None:
        body = {"model": "base", "prompt": "a fox", "steps": 20, "user": f"person {person}"}
        while not leave.is_set():
            status = requests.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE).status_code
            with lock:
                answers[status] += 1

    assert replicas(url) == 1
    with ThreadPoolExecutor(8) as pool:
        try:
            drawing = [pool.submit(draw_on, person, everybody if person == 0 else crowd) for person in range(8)]
            wait_until(lambda: replicas(url) == 2)
            victim, _ = house.denoisers(NAME)
            victim.kill()
            wait_until(lambda: victim not in (there := house.denoisers(NAME)) and len(there) == replicas(url) == 2)
            crowd.set()
            wait_until(lambda: replicas(url) == 1)
        finally:
            crowd.set()
            everybody.set()
        for future in drawing:
            future.result()
    assert answers.keys() == {200}, answers
