"""The HTTP contract over a real replica: how everything that cannot be drawn is refused."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from cp_serve.answers import known
from cp_serve.engine import Places
from cp_serve.http import MAX_BODY_BYTES
from cp_serve.schemas import SEED_LIMIT
from services.errors import BusyError
from tests.cp_serve.conftest import Serving
from tests.cp_serve.test_http import PATH, PROMPT, SECRET, refused

REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 9}, "n", "less than or equal to 8"),
    ({"n": 10**400}, "n", "n: "),
    ({"n": "two"}, "n", "valid integer"),
    ({"steps": 0}, "steps", "greater than or equal to 1"),
    ({"steps": 101}, "steps", "less than or equal to 100"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": SEED_LIMIT}, "seed", "less than"),
    ({"seed": 0.5}, "seed", "valid integer"),
    ({"guidance_scale": -0.1}, "guidance_scale", "greater than or equal to 0"),
    ({"guidance_scale": 51}, "guidance_scale", "less than or equal to 50"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "finite"),
    ({"guidance_scale": float("inf")}, "guidance_scale", "finite"),
    ({"guidance_scale": 10**400}, "guidance_scale", "guidance_scale: "),
    ({"size": "32x32"}, "size", "this base draws 16x16"),
    ({"size": "16X16"}, "size", "this base draws 16x16"),
    ({"size": "x" * 17}, "size", "at most 16 characters"),
    ({"sampler": "magic"}, "sampler", "choose one of ddim"),
    ({"response_format": "file"}, "response_format", "'b64_json' or 'url'"),
    ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
    ({"stream": "perhaps"}, "stream", "valid boolean"),
    ({"partial_images": 4}, "partial_images", "less than or equal to 3"),
    ({"deadline_seconds": 0}, "deadline_seconds", "greater than 0"),
    ({"deadline_seconds": float("inf")}, "deadline_seconds", "finite"),
    ({"prompt": None}, "prompt", "required"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
    ({"prompt": "x" * 1001}, "prompt", "at most 1000 characters"),
    ({"prompt": "\ud800"}, "prompt", "prompt: "),
    ({"prompt": ["a"]}, "prompt", "valid string"),
    ({"prompt": "a " * 23}, "prompt", "23 tokens, but this base's text encoder takes 22"),
    ({"prompt": "\U0001f98a" * 1000}, "prompt", "tokens, but"),
    ({"prompt": "<robot> " * 12}, "prompt", "24 tokens, but"),
    ({"negative_prompt": "a " * 23}, "negative_prompt", "23 tokens, but"),
    ({"negative_prompt": "<cat>"}, "negative_prompt", "<cat> is not a concept of this version"),
    ({"prompt": "a <cat>"}, "prompt", "<cat> is not a concept of this version (it knows: <fox>, <robot>)"),
    ({"prompt": "a <FOX>"}, "prompt", "<FOX> is not a concept"),
    ({"prompt": "<|endoftext|>"}, "prompt", "<|endoftext|> is not a concept"),
    ({"prompt": "a <fox>", "model": "base"}, "prompt", "knows: none yet"),
    ({"prompt": "a <robot>", "model": "pets@1"}, "prompt", "knows: <fox>)"),
    ({"model": None}, "model", "required"),
    ({"model": ""}, "model", "at least 1 character"),
    ({"model": "Pets"}, "model", "write L, L@7"),
    ({"model": "pets@"}, "model", "write L, L@7"),
    ({"model": "pets@-1"}, "model", "write L, L@7"),
    ({"model": "pets@1@2"}, "model", "write L, L@7"),
    ({"model": "pets@²"}, "model", "write L, L@7"),
    ({"model": "pets@1234567890"}, "model", "write L, L@7"),
    ({"model": "base@1"}, "model", "write L, L@7"),
    ({"model": "../pets"}, "model", "write L, L@7"),
    ({"model": "pets\r\nX-A: b"}, "model", "write L, L@7"),
    ({"model": "x" * 65}, "model", "at most 64 characters"),
    ({"mask": "x"}, "mask", "not permitted"),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_a_field_that_cannot_be_accepted_is_named(
    serving: Serving, fields: dict[str, object], param: str, message: str
) -> None:
    body = json.dumps(PROMPT | fields)
    response = serving.client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    refused(response, 422, "invalid_value", param, message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nobody", "no lineage `nobody`"),
        ("nobody@1", "no lineage `nobody`"),
        ("pets@9", "no version 9"),
        ("pets@0", "no version 0"),
        ("pets@candidate", "no version 'candidate'; there are: 1 to 2, live is 2"),
    ],
)
def test_what_does_not_exist_is_not_found(serving: Serving, model: str, message: str) -> None:
    refused(serving.client.post(PATH, json=PROMPT | {"model": model}), 404, "not_found", "model", message)


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "invalid_json"),
        (b"", JSON, 422, "invalid_value"),
        (b"null", JSON, 422, "invalid_value"),
        (b"[]", JSON, 422, "invalid_value"),
        (b'"x"', JSON, 422, "invalid_value"),
        (b'{"prompt": "\xff"}', JSON, 400, "bad_request"),
        (b"[" * 60_000, JSON, 400, "bad_request"),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON, 400, "bad_request"),
        (b'{"model": "pets", "prompt": "x"}', {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"model=pets", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b" " * (MAX_BODY_BYTES + 1), JSON, 413, "too_large"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    serving: Serving, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    refused(serving.client.post(PATH, content=content, headers=headers), status, code, None, "")


def test_a_huge_body_is_not_read(serving: Serving) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while read < 100 * MAX_BODY_BYTES:
            read += 1024
            yield b" " * 1024

    response = serving.client.post(PATH, content=endless(), headers=JSON)
    refused(response, 413, "too_large", None, str(MAX_BODY_BYTES))


def test_a_field_may_be_called_anything_and_is_not_repeated(serving: Serving) -> None:
    for name in ("\ud800", "x" * 1000, "a\nb", SECRET + " "):
        response = serving.client.post(PATH, content=json.dumps(PROMPT | {name: 1}), headers=JSON)
        refused(response, 422, "invalid_value", None, "body: ")
        assert name.strip() not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", PATH, 405, "POST"),
        ("DELETE", "/v1/lineages/pets/live", 405, "PUT"),
        ("POST", "/v1/models", 405, "GET"),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("GET", "/v1/lineages/a/b/c", 404, None),
        ("GET", "/v1/lineages/..%2F..%2Fetc%2Fpasswd", 404, None),
    ],
)
def test_other_routes_and_methods(serving: Serving, method: str, path: str, status: int, allow: str | None) -> None:
    response = serving.client.request(method, path, follow_redirects=False)
    refused(response, status, "not_found" if status == 404 else "method_not_allowed", None, "")
    assert response.headers.get("allow") == allow


NO_NAMES = ["Pets", "pets;x", "%0d%0aX-Injected:%20yes", "base", "-", "%ff", "%00", "'%20OR%201", "x" * 65]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_in_a_path_cannot_be_more_than_a_name(serving: Serving, name: str) -> None:
    for method, path, body in (("GET", "", None), ("PUT", "/live", {"version": 1})):
        response = serving.client.request(method, f"/v1/lineages/{name}{path}", json=body)
        refused(response, 422, "invalid_value", "lineage", "")
        assert "x-injected" not in response.headers
    if name != "base":
        refused(serving.client.get(f"/v1/models/{name}"), 422, "invalid_value", "model", "")


def test_a_full_queue_is_a_503_with_retry_after(serving: Serving) -> None:
    with serving.full():
        response = serving.client.post(PATH, json=PROMPT)
    refused(response, 503, "busy", None, "try again later")
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "server_error"
    assert serving.client.get("/readyz").json()["load"] == 0


def test_whoever_has_half_of_all_places_is_a_429_and_others_are_drawn(serving: Serving) -> None:
    engine = serving.denoiser.engine
    ann = serving.app.state.house.signer.sign("person", "ann")
    with engine.places(Places((engine.max_batch + engine.max_queue) // 2, steps=1, person=ann)):
        response = serving.client.post(PATH, json=PROMPT | {"user": "ann"})
        refused(response, 429, "rate_limit_exceeded", None, "images of yours")
        assert int(response.headers["retry-after"]) >= 1
        assert serving.generate(user="bob", steps=1)


def test_retry_after_is_never_sooner_than_was_computed() -> None:
    error = BusyError("full", retry_after=1.2)
    assert asyncio.run(known(None, error)).headers["retry-after"] == "2"  # type: ignore[arg-type]


def test_an_unexpected_error_is_a_500_without_its_text(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(SECRET)

    logging.getLogger("palimpsest").propagate = True
    hook = serving.denoiser.base.unet.register_forward_pre_hook(fail)
    try:
        response = serving.client.post(PATH, json=PROMPT)
    finally:
        hook.remove()
        logging.getLogger("palimpsest").propagate = False
    refused(response, 500, "internal_error", None, "went wrong on our side")
    assert SECRET not in response.text
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text
    assert serving.generate()
