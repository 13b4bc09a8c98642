"""Concepts, jobs and classification over HTTP, with everything real but Ray's job API, which is down here.

What the jobs do is in tests/e2e/test_learning_over_http.py.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from cp_serve.routes import concepts
from services.intake import Intake
from services.manifest import BaseRef, sha256
from services.objects import open_store
from tests.cp_serve.conftest import Serving
from tests.cp_serve.test_http import refused
from tests.cp_serve.versions import publish

PATH = "/v1/lineages/pets/concepts"
CLASSIFY = "/v1/lineages/pets/classify"
SAMPLES = sorted((Path(__file__).parents[2] / "infra" / "samples" / "robot").glob("*.png"))
FIELDS = {"name": "mug", "noun": "mug"}


def upload(files: Sequence[tuple[str, bytes]], part: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    return [(part, file) for file in files]


def good() -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in SAMPLES]


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.new("RGB", (width, height), "red").save(out, kind)
    return out.getvalue()


def post(
    serving: Serving,
    files: Sequence[tuple[str, bytes]],
    path: str = PATH,
    headers: dict[str, str] | None = None,
    **fields: str,
) -> Any:
    return serving.client.post(path, data=FIELDS | fields, files=upload(files), headers=headers)


def held(serving: Serving) -> list[str]:
    """What is in the intake store."""
    return list(open_store(serving.settings).list("intake/"))


def test_where_no_job_can_be_submitted_no_picture_stays(serving: Serving) -> None:
    response = post(serving, good())
    refused(response, 503, "unavailable", None, "Ray's job API")
    assert int(response.headers["retry-after"]) >= 1
    assert held(serving) == []
    assert list(open_store(serving.settings).list("leases/pets/queue/")) == [], "nobody waits for it"


def test_a_key_is_free_again_after_a_failure(serving: Serving) -> None:
    for _ in range(2):
        while (response := post(serving, good(), headers={"Idempotency-Key": "learn-1"})).status_code == 409:
            pass  # the claim is given up a moment after the answer
        assert response.status_code == 503
    assert held(serving) == []


def test_a_lineage_of_another_base_is_refused_before_any_picture_is_held(serving: Serving) -> None:
    lineage, other = f"l{uuid4().hex[:8]}", BaseRef(id="other", revision=sha256(b"other"))
    publish(serving.registry, lineage, serving.denoiser.base, serving.adapters[1], live=False, ref=other)
    response = post(serving, good(), path=f"/v1/lineages/{lineage}/concepts")
    refused(response, 409, "refused", None, "belongs to another base model")
    assert held(serving) == []


def test_a_concept_that_is_known_is_a_conflict(serving: Serving) -> None:
    refused(post(serving, good(), name="robot"), 409, "conflict", "name", "knows <robot> already")
    assert post(serving, good(), name="robot", again="true").status_code == 503, "unless it is meant"
    assert post(serving, good(), path="/v1/lineages/unheard-of/concepts", name="robot").status_code == 503


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"name": "Mug"}, "name", "'Mug' is not a name"),
        ({"name": "base"}, "name", "reserved"),
        ({"name": "x" * 65}, "name", "at most 64"),
        ({"noun": "<fox>"}, "noun", "plain words"),
        ({"noun": "x" * 65}, "noun", "at most 64"),
        ({"method": "; rm"}, "method", "pattern"),
        ({"method": "magic"}, "method", "method: there is no 'magic'; choose one of ewc_dc_kv, ewc_dc, ewc, dsc, "),
        ({"method": "joint"}, "method", "choose one of ewc_dc_kv, "),
        ({"steps": "0"}, "steps", "greater than or equal to 1"),
        ({"steps": "many"}, "steps", "valid integer"),
        ({"rank": "1025"}, "rank", "less than or equal"),
        ({"seed": "-1"}, "seed", "greater than or equal to 0"),
        ({"again": "perhaps"}, "again", "valid boolean"),
        ({"images": "not a file"}, "images", "images: "),
        ({"base": "elsewhere"}, "base", "not permitted"),
    ],
)
def test_a_field_that_cannot_be_accepted_is_named(
    serving: Serving, fields: dict[str, str], param: str, message: str
) -> None:
    files = [] if "images" in fields else good()
    response = serving.client.post(
        PATH, data=FIELDS | fields, files=[*upload(files), ("x", b"")] if not files else upload(files)
    )
    assert response.status_code in (415, 422), response.text
    if "images" not in fields:
        refused(response, 422, "invalid_value", param, message)
    assert held(serving) == []


@pytest.mark.parametrize(
    ("files", "status", "code", "message"),
    [
        ([], 415, "unsupported_media_type", ""),
        ([("a.png", b"")], 415, "unsupported_image", "'a.png' is empty"),
        ([("a.png", b"GIF89a")], 415, "unsupported_image", "not a PNG"),
        ([("a.gif", picture(64, 64, "GIF"))], 415, "unsupported_image", "not a PNG"),
        ([("../../a.png", picture(64, 64)[:100])], 415, "unsupported_image", "'a.png' is damaged"),
        ([("a.png", picture(31, 64))], 422, "invalid_value", "31x64"),
        ([("a.png", picture(6000, 5000))], 413, "too_large", "pixels"),
        ([("a.png", b"\x89PNG\r\n\x1a\n" + b"x" * (10 * 2**20))], 413, "too_large", "larger than 10485760"),
        ([("a.png", picture(64, 64))] * 65, 413, "too_large", "more than 64"),
    ],
)
def test_pictures_that_cannot_be_taken_are_refused(
    serving: Serving, files: list[tuple[str, bytes]], status: int, code: str, message: str
) -> None:
    response = post(serving, files)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert message in response.json()["error"]["message"]
    assert held(serving) == []


def test_names_in_the_path(serving: Serving) -> None:
    refused(post(serving, good(), path="/v1/lineages/Pets/concepts"), 422, "invalid_value", "lineage", "not a name")
    refused(serving.client.post(PATH, json={}), 415, "unsupported_media_type", None, "")


def test_not_more_uploads_are_read_at_once_than_there_is_room_for(serving: Serving) -> None:
    home = serving.app.state.house
    room = home.uploads._value
    home.uploads._value = 0
    try:
        response = post(serving, good())
    finally:
        home.uploads._value = room
    refused(response, 503, "busy", None, "Other uploads")
    assert response.headers["retry-after"]


def test_how_long_it_takes_is_judged_by_what_the_lineage_took(serving: Serving) -> None:
    assert concepts._eta(serving.registry, "pets", None) is None, "those versions say nothing of it"


def test_images_of_nobodys_job_stay_nobodys(serving: Serving) -> None:
    intake = Intake(open_store(serving.settings), serving.settings)
    assert intake.release("in-" + "0" * 32) == 0


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_job_is_asked_for_by_a_sound_id(serving: Serving, method: str) -> None:
    for bad in ("a%2Fb", "x" * 65, "a b", "%00"):
        assert serving.client.request(method, f"/v1/jobs/{bad}").status_code in (404, 422)
    refused(serving.client.request(method, "/v1/jobs/learn-1"), 503, "unavailable", None, "Ray's job API")
    refused(serving.client.get("/v1/jobs/learn-1/events"), 503, "unavailable", None, "Ray's job API")


def test_a_picture_is_scored_over_the_concepts_of_a_version(serving: Serving) -> None:
    response = serving.client.post(CLASSIFY, data={"trials": "4"}, files={"image": good()[0]})
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["model"] == "pets@2"
    assert list(found["probabilities"]) == ["fox", "robot", "none"]
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert found["label"] == max(found["probabilities"], key=found["probabilities"].get)
    older = serving.client.post(CLASSIFY, data={"version": "1", "trials": "1"}, files={"image": good()[0]}).json()
    assert (older["model"], list(older["probabilities"])) == ("pets@1", ["fox", "none"])


@pytest.mark.parametrize(
    ("data", "files", "status", "param"),
    [
        ({"trials": "0"}, {"image": good()[0]}, 422, "trials"),
        ({"version": "newest"}, {"image": good()[0]}, 422, "version"),
        ({"version": "9"}, {"image": good()[0]}, 404, "version"),
        ({}, {"image": ("a.png", b"x")}, 415, "images"),
        ({}, [("image", good()[0]), ("image", good()[1])], 413, "image"),
        ({}, {"other": good()[0]}, 422, "image"),
    ],
)
def test_what_cannot_be_classified(serving: Serving, data: Any, files: Any, status: int, param: str) -> None:
    response = serving.client.post(CLASSIFY, data=data, files=files)
    assert response.status_code == status, response.text
    if status != 422 or param != "image":
        assert response.json()["error"]["param"] == param


def test_nobody_classifies_for_a_lineage_that_is_not_there(serving: Serving) -> None:
    response = serving.client.post("/v1/lineages/nobody/classify", files={"image": good()[0]})
    refused(response, 404, "not_found", "lineage", "no lineage")
