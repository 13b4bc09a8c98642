"""A concept learned over HTTP in the running house: submitted once however often it is sent, followed, stopped."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.house import PATIENCE, SAMPLES, House, wait_until

LINEAGE = "over-http"


def submit(house: House, name: str, *, key: str = "", lineage: str = LINEAGE, **fields: str) -> requests.Response:
    files = [("images", (path.name, path.read_bytes())) for path in sorted((SAMPLES / "robot").glob("*.png"))]
    return requests.post(
        f"{house.settings.api}/v1/lineages/{lineage}/concepts",
        data={"name": name, "noun": "robot"} | fields,
        files=files,
        headers={"Idempotency-Key": key} if key else {},
        timeout=PATIENCE,
    )


def job(house: House, job_id: str, method: str = "GET") -> dict[str, Any]:
    response = requests.request(method, f"{house.settings.api}/v1/jobs/{job_id}", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def events(house: House, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    url = f"{house.settings.api}/v1/jobs/{job_id}/events"
    name = ""
    with requests.get(url, stream=True, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.text
        for line in response.iter_lines(decode_unicode=True):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def learned(house: House) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    first, second = (submit(house, "robot", key="k-1", steps="24") for _ in range(2))
    assert first.status_code == 202, first.text
    assert second.json() == first.json()
    assert second.headers["Idempotent-Replayed"] == "true"
    answer = first.json()
    assert first.headers["Location"] == f"/v1/jobs/{answer['job_id']}"
    assert answer["images"] == len(list((SAMPLES / "robot").glob("*.png")))
    assert answer["findings"] == []
    return answer["job_id"], list(events(house, answer["job_id"]))


def test_the_job_is_followed_to_its_version(
    house: House, learned: tuple[str, list[tuple[str, dict[str, Any]]]]
) -> None:
    job_id, found = learned
    assert {name for name, _ in found} == {"job.updated", "job.log", "job.finished"}
    steps = [data["progress"]["step"] for name, data in found if name == "job.updated" and data["progress"]]
    assert steps == sorted(steps)
    assert steps[-1] == 24
    name, last = found[-1]
    assert name == "job.finished"
    assert (last["status"], last["version"], last["live"], last["error"]) == ("succeeded", 1, True, None)
    assert last == job(house, job_id)
    assert last["finished"] >= last["created"]
    house.serves(LINEAGE, 1)
    assert list(house.store.list("intake/")) == []


def test_the_next_one_has_an_estimate_and_the_same_one_is_a_conflict(
    house: House, learned: tuple[str, list[tuple[str, dict[str, Any]]]]
) -> None:
    assert submit(house, "robot").status_code == 409
    second = submit(house, "other", steps="24").json()
    assert second["eta_seconds"] > 0
    assert second["job_id"] != learned[0]
    job(house, second["job_id"], "DELETE")


def test_a_job_is_stopped_once_however_often_and_its_images_are_gone(house: House) -> None:
    job_id = submit(house, "robot", lineage="cancelled", steps="5000").json()["job_id"]
    wait_until(lambda: job(house, job_id)["status"] != "queued")
    for _ in range(3):
        job(house, job_id, "DELETE")
    wait_until(lambda: job(house, job_id)["status"] == "cancelled")
    assert list(house.store.list("intake/")) == []
    assert requests.get(f"{house.settings.api}/v1/lineages/cancelled", timeout=PATIENCE).status_code == 404


def test_a_job_that_fails_says_why(house: House) -> None:
    """Of what only the job can know: how many tokens a noun is."""
    noun = " ".join("abcdefghijklmnopqrstuvwxyz")
    job_id = submit(house, "robot", lineage="failing", noun=noun).json()["job_id"]
    *_, (name, last) = events(house, job_id)
    assert (name, last["status"]) == ("job.finished", "failed")
    assert "shorten it" in last["error"]
    assert list(house.store.list("leases/failing/")) == [], "its place in the queue is nobody's to wait for"
    job(house, job_id, "DELETE")
    assert list(house.store.list("intake/")) == []


def test_there_is_no_such_job(house: House) -> None:
    response = requests.get(f"{house.settings.api}/v1/jobs/learn-0", timeout=PATIENCE)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_serves_proxy_puts_one_id_on_an_answer(house: House) -> None:
    response = requests.get(f"{house.settings.api}/healthz", headers={"X-Request-Id": "abc"}, timeout=PATIENCE)
    assert response.headers["X-Request-Id"] == "abc"


def test_submissions_at_once_are_learned_in_their_order(house: House) -> None:
    """Whichever job Ray starts first."""
    names = ("zebra", "yak", "ant")
    job_ids = [submit(house, name, lineage="queue", steps="4", method="ewc").json()["job_id"] for name in names]
    ends = [list(events(house, job_id))[-1][1] for job_id in job_ids]
    assert [(end["version"], end["status"]) for end in ends] == [(1, "succeeded"), (2, "succeeded"), (3, "succeeded")]
    order = [house.registry.version("queue", number).concepts[-1] for number in (1, 2, 3)]
    assert order == list(names), "whatever the gate says of four steps"
    assert list(house.store.list("leases/queue/queue/")) == []
