"""The HTTP contract over a real replica: what is drawn, listed and moved."""

import base64
import logging
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cp_serve.schemas import SEED_LIMIT
from services.manifest import BaseRef, sha256
from tests.cp_serve.conftest import Serving
from tests.cp_serve.drawings import NEAR, Gate, Wish, alone, distance
from tests.cp_serve.versions import adapter_of, publish
from tests.house import wait_until

PATH = "/v1/images/generations"
PROMPT: dict[str, object] = {"model": "pets", "prompt": "a <fox>"}
SECRET = "xyzzy-plugh"


def pictures(answer: dict[str, Any]) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(BytesIO(base64.b64decode(one["b64_json"])))) for one in answer["data"]]


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def refused(response: Any, status: int, code: str, param: str | None, message: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert (error["code"], error["param"]) == (code, param)
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text


def test_a_picture_is_the_one_of_its_version(serving: Serving) -> None:
    answer = serving.generate(steps=3, seed=5, negative_prompt="dark")
    assert answer["model"] == "pets@2"
    assert answer["digest"] == serving.registry.version("pets", 2).digest
    assert answer["warnings"] == []
    assert answer["created"] > 0
    assert answer["timings"].keys() == {"condition", "queue", "draw", "total"}
    assert [one["seed"] for one in answer["data"]] == [5]
    wish = Wish(prompt="a <fox>", negative="dark", adapter=serving.adapters[2], seed=5, steps=3)
    (picture,) = pictures(answer)
    assert distance(torch.from_numpy(picture.copy()), alone(serving.denoiser.base, wish)) <= NEAR
    assert np.array_equal(pictures(serving.generate(steps=3, seed=5, negative_prompt="dark"))[0], picture)


@pytest.mark.parametrize(("model", "drawn_by"), [("pets", 2), ("pets@live", 2), ("pets@1", 1), ("pets@2", 2)])
def test_the_answer_says_which_version_drew(serving: Serving, model: str, drawn_by: int) -> None:
    answer = serving.generate(model=model)
    assert answer["model"] == f"pets@{drawn_by}"
    wish = Wish(prompt="a <fox>", adapter=serving.adapters[drawn_by], seed=1, steps=2)
    assert distance(torch.from_numpy(pictures(answer)[0].copy()), alone(serving.denoiser.base, wish)) <= NEAR


def test_the_base_draws_without_an_adapter(serving: Serving) -> None:
    answer = serving.generate(model="base", prompt="a fox")
    assert answer["model"] == "base"
    assert answer["digest"] == serving.denoiser.base.ref.revision


def test_image_i_is_the_one_of_seed_plus_i(serving: Serving) -> None:
    together = serving.generate(n=3, seed=SEED_LIMIT - 2)
    assert [one["seed"] for one in together["data"]] == [SEED_LIMIT - 2, SEED_LIMIT - 1, 0]
    for one, picture in zip(together["data"], pictures(together), strict=True):
        assert apart(picture, pictures(serving.generate(seed=one["seed"]))[0]) <= NEAR
    assert apart(*pictures(together)[:2]) > NEAR


def test_without_a_seed_one_is_drawn_and_told(serving: Serving) -> None:
    first, second = (serving.generate(seed=None) for _ in range(2))
    seed = first["data"][0]["seed"]
    assert seed != second["data"][0]["seed"]
    assert apart(pictures(first)[0], pictures(serving.generate(seed=seed))[0]) <= NEAR


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_pictures_come_in_the_format_asked_for(serving: Serving, output_format: str) -> None:
    (one,) = serving.generate(output_format=output_format)["data"]
    with Image.open(BytesIO(base64.b64decode(one["b64_json"]))) as image:
        image.load()
        assert (image.format, image.size, image.mode) == (output_format.upper(), (16, 16), "RGB")


def test_warnings_name_what_has_no_effect(serving: Serving) -> None:
    answer = serving.generate(quality="hd", style="vivid", svg={"a": 1}, guidance_scale=1, negative_prompt="dark")
    assert answer["warnings"] == [
        "quality has no effect here.",
        "style has no effect here.",
        "svg has no effect here.",
        "negative_prompt has no effect with a guidance_scale of at most 1.",
    ]


def test_null_means_the_default(serving: Serving) -> None:
    answer = serving.generate(n=None, size=None, response_format=None, quality=None, user=None, steps=1)
    assert len(answer["data"]) == 1
    assert answer["warnings"] == []


def test_the_extremes_are_drawn(serving: Serving) -> None:
    assert len(serving.generate(n=8, steps=1, size="16x16")["data"]) == 8
    assert serving.generate(steps=100, guidance_scale=50, seed=SEED_LIMIT - 1)
    for prompt in ("x", " ", "\0", "ﷺ", "\U0001f98a", "<", "<>", "< fox >", "a<fox>b<robot>", "\u202etac"):
        assert serving.generate(prompt=prompt, steps=1, guidance_scale=0)


def test_models_are_listed_in_openais_shape(serving: Serving) -> None:
    found = {model["id"]: model for model in serving.client.get("/v1/models").json()["data"]}
    assert {"base", "pets", "pets@1", "pets@2"} <= found.keys()
    for name in ("pets", "pets@2"):
        assert serving.client.get(f"/v1/models/{name}").json() == found[name]
        assert found[name]["object"] == "model"
        assert found[name]["created"] > 1_700_000_000
    assert serving.client.get("/v1/models/base").json()["id"] == "base"
    assert serving.client.get("/v1/models/pets@live").json()["id"] == "pets@2"
    refused(serving.client.get("/v1/models/nobody"), 404, "not_found", "model", "no lineage")
    refused(serving.client.get("/v1/models/pets@7"), 404, "not_found", "model", "no version")


def test_a_lineage_is_shown_as_a_tree(serving: Serving) -> None:
    serving.registry.log_metrics(serving.registry.version("pets", 2).run_id, {"dc_accuracy": 0.5})
    found = serving.client.get("/v1/lineages/pets").json()
    assert (found["lineage"], found["live"], found["candidate"]) == ("pets", 2, None)
    assert [version["concepts"] for version in found["versions"]] == [["fox"], ["fox", "robot"]]
    assert found["versions"][1]["aliases"] == ["live"]
    assert [version["metrics"].get("dc_accuracy") for version in found["versions"]] == [None, 0.5]
    refused(serving.client.get("/v1/lineages/nobody"), 404, "not_found", "lineage", "no lineage")


def test_live_moves_over_http_and_serving_follows(serving: Serving) -> None:
    before = serving.generate(model="pets@1")
    response = serving.client.put("/v1/lineages/pets/live", json={"version": 1, "reason": "better"})
    assert response.json() == {"lineage": "pets", "live": 1, "previous": 2, "canary": None}
    try:
        serving.await_live("pets", 1)
        assert serving.generate() | {"created": 0, "timings": {}} == before | {"created": 0, "timings": {}}
    finally:
        serving.registry.set_live("pets", 2)
        serving.await_live("pets", 2)


def test_live_moves_only_to_what_exists(serving: Serving) -> None:
    path = "/v1/lineages/pets/live"
    refused(serving.client.put(path, json={"version": 9}), 404, "not_found", "version", "no version 9")
    refused(serving.client.put(path, json={"version": 2**70}), 404, "not_found", "version", "no version")
    refused(serving.client.put(path, json={"version": 0}), 422, "invalid_value", "version", "")
    refused(serving.client.put(path, json={"version": 1, "x": 1}), 422, "invalid_value", "x", "")
    refused(serving.client.put("/v1/lineages/nobody/live", json={"version": 1}), 404, "not_found", "lineage", "")
    assert serving.registry.aliases("pets")["live"] == 2


def test_a_canary_needs_a_live_version_beside_it_and_to_have_passed_its_gate(serving: Serving) -> None:
    registry, base, path = serving.registry, serving.denoiser.base, "/v1/lineages/trial/live"
    trial = {"version": 1, "canary_percent": 10}
    publish(registry, "trial", base, adapter_of(base, {"mug": 1}, seed=1), live=False)
    refused(serving.client.put(path, json=trial), 409, "conflict", None, "no live version")
    registry.set_live("trial", 1)
    publish(registry, "trial", base, adapter_of(base, {"mug": 1}, seed=2), live=False, passed=False)
    refused(serving.client.put(path, json=trial | {"version": 2}), 409, "refused", None, "failed its gate")
    assert registry.canary("trial") is None
    publish(registry, "trial", base, adapter_of(base, {"mug": 1}, seed=3), live=False)
    answer = serving.client.put(path, json=trial | {"version": 3}).json()
    assert (answer["live"], answer["canary"]) == (1, {"version": 3, "percent": 10.0})
    answer = serving.client.put(path, json={"version": 3}).json()
    assert (answer["live"], answer["canary"]) == (3, None)


def test_a_brand_new_lineage_is_drawn_at_once(serving: Serving) -> None:
    adapter = adapter_of(serving.denoiser.base, {"mug": 1})
    publish(serving.registry, "brand-new", serving.denoiser.base, adapter, live=False)
    assert serving.generate(model="brand-new@candidate", prompt="a <mug>")["model"] == "brand-new@1"
    response = serving.client.post(PATH, json={"model": "brand-new", "prompt": "a <mug>"})
    refused(response, 404, "not_found", "model", "candidate is 1")
    serving.registry.set_live("brand-new", 1)
    assert serving.generate(model="brand-new", prompt="a <mug>")["model"] == "brand-new@1"
    serving.await_live("brand-new", 1)


def test_a_version_that_must_not_be_used_is_refused_and_said_so(serving: Serving) -> None:
    base = serving.denoiser.base
    publish(serving.registry, "refused", base, adapter_of(base, {"mug": 1}, seed=1))
    serving.await_live("refused", 1)
    other = BaseRef(id="other", revision=sha256(b"other"))
    publish(serving.registry, "refused", base, adapter_of(base, {"mug": 1}, seed=2), ref=other)
    wait_until(lambda: "refused" in serving.client.get("/readyz").json()["refused"])
    assert serving.generate(model="refused", prompt="a <mug>")["model"] == "refused@1"
    response = serving.client.post(PATH, json={"model": "refused@2", "prompt": "a <mug>"})
    refused(response, 409, "refused", None, "another base model: other")
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_health(serving: Serving) -> None:
    assert serving.client.get("/healthz").json() == {"status": "ok"}
    ready = serving.client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["versions"]["pets"] == 2
    assert ready["load"] == 0
    assert ready["image_size"] == 16
    assert ready["base_revision"] == serving.denoiser.base.ref.revision
    serving.denoiser.check_health()


def test_no_prompt_is_logged(
    serving: Serving, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    refusals: list[dict[str, object]] = [
        {"prompt": f"<{SECRET}>"},
        {"prompt": SECRET * 50},
        {"prompt": SECRET, "n": 0},
        {"user": [SECRET]},
    ]
    logging.getLogger("palimpsest").propagate = True
    caplog.set_level(logging.DEBUG)
    try:
        serving.generate(prompt=SECRET, negative_prompt=SECRET, user=SECRET)
        for fields in refusals:
            response = serving.client.post(PATH, json=PROMPT | fields)
            assert response.status_code == 422
            assert SECRET not in response.text or f"<{SECRET}> is not a concept" in response.text
    finally:
        logging.getLogger("palimpsest").propagate = False
    captured = capfd.readouterr()
    assert SECRET not in caplog.text + captured.out + captured.err


def test_many_at_once_each_get_their_own(serving: Serving) -> None:
    bodies = [{"model": f"pets@{1 + i % 2}", "seed": i, "steps": 1 + i % 4, "prompt": "a <fox>"} for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: serving.generate(**body), bodies))
    for body, answer in zip(bodies, together, strict=True):
        assert answer["model"] == body["model"]
        assert apart(pictures(answer)[0], pictures(serving.generate(**body))[0]) <= NEAR


def test_whoever_has_begun_finishes_with_the_version_he_began_with(serving: Serving) -> None:
    expected = serving.generate(model="pets@2", steps=4)
    with Gate(serving.denoiser.base) as gate, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(serving.generate, steps=4)
        gate.arrived()
        serving.registry.set_live("pets", 1)
        serving.await_live("pets", 1)
        gate.open()
        answer = asked.result()
    serving.registry.set_live("pets", 2)
    serving.await_live("pets", 2)
    assert answer["model"] == "pets@2"
    assert answer["data"] == expected["data"]
