"""Requests made up from the OpenAPI document, sound ones and broken ones: none is a 500, every error is OpenAI's."""

import json
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cp_serve.schemas import GenerationRequest, LiveRequest
from tests.cp_serve.conftest import Serving

EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["pets", "base", "nobody", "pets@1", "..", "%2e%2e%2f", "%00", "'"]) | st.text(
    st.characters(codec="utf-8"), max_size=80
)


def sound(response: Any) -> None:
    """What every answer is."""
    assert response.status_code < 500 or response.status_code in (503, 504), response.text
    assert "Traceback" not in response.text
    if response.status_code >= 400:
        assert response.json()["error"].keys() == {"message", "type", "code", "param"}
        assert response.headers["x-request-id"]


def values(field: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a field of a JSON schema takes."""
    if "anyOf" in field:
        return st.one_of([values(option) for option in field["anyOf"]])
    if "enum" in field:
        return st.sampled_from(field["enum"])
    low, high = (field.get(f"{end}imum", field.get(f"exclusive{end.title()}imum")) for end in ("min", "max"))
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "boolean": st.booleans(),
        "integer": st.integers(low, high),
        "null": st.none(),
        "number": st.floats(low, high, allow_nan=False),
        "string": st.text(min_size=field.get("minLength", 0), max_size=min(50, field.get("maxLength", 50))),
    }
    return kinds.get(field.get("type", ""), JSON)


def fields(schema: dict[str, Any], cheap: dict[str, object]) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies of a schema, with one or two fields that may be anything at all; `cheap` keeps the others affordable."""
    known = {name: values(field) for name, field in schema["properties"].items()}
    some = st.fixed_dictionaries({}, optional=known)
    wild = st.dictionaries(st.sampled_from(sorted(known)) | st.text(max_size=8), JSON, max_size=2)
    return st.builds(lambda body, noise: body | cheap | noise, some, wild)


@EXAMPLES
@given(body=fields(GenerationRequest.model_json_schema(), {"model": "pets", "prompt": "a <fox>", "steps": 1, "n": 1}))
def test_no_generation_is_a_500(serving: Serving, body: dict[str, Any]) -> None:
    content = json.dumps(body)
    headers = {"Content-Type": "application/json"}
    response = serving.client.post("/v1/images/generations", content=content, headers=headers)
    sound(response)
    assert "event: error" not in response.text or "internal_error" not in response.text


@EXAMPLES
@given(name=NAMES, body=fields(LiveRequest.model_json_schema(), {"version": 99}))
def test_no_move_is_a_500(serving: Serving, name: str, body: dict[str, Any]) -> None:
    sound(_send(serving, "PUT", f"/v1/lineages/{name}/live", json=body))


def _send(serving: Serving, method: str, path: str, **options: Any) -> Any:
    """Send a request to a path, whatever is in it."""
    return serving.client.request(method, quote(path, safe="/%?=&"), **options)


@EXAMPLES
@given(method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "BREW"]), name=NAMES, more=NAMES, query=NAMES)
def test_no_path_is_a_500(serving: Serving, method: str, name: str, more: str, query: str) -> None:
    for path in (
        f"/v1/models/{name}",
        f"/v1/lineages/{name}",
        f"/v1/jobs/{name}",
        f"/v1/jobs/{name}/{more}",
        f"/v1/pictures/{name}?signature={query}",
        f"/{name}/{more}",
    ):
        response = _send(serving, method, path)
        if method != "HEAD":
            sound(response)


@EXAMPLES
@given(
    path=st.sampled_from(["/v1/lineages/pets/concepts", "/v1/lineages/pets/classify"]),
    data=st.dictionaries(
        st.sampled_from(["name", "noun", "method", "steps", "rank", "seed", "again", "version", "trials", "x"]),
        st.text(max_size=20) | st.integers().map(str),
        max_size=5,
    ),
    files=st.lists(st.tuples(st.sampled_from(["images", "image"]), st.binary(max_size=200)), max_size=3),
    key=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
)
def test_no_form_is_a_500(
    serving: Serving, path: str, data: dict[str, str], files: list[tuple[str, bytes]], key: str | None
) -> None:
    parts = [(name, ("a.png", content)) for name, content in files]
    headers = {} if key is None else {"Idempotency-Key": key}
    sound(_send(serving, "POST", path, data=data, files=parts, headers=headers))


@EXAMPLES
@given(
    body=st.binary(max_size=200), kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "a/b"])
)
def test_no_bytes_are_a_500(serving: Serving, body: bytes, kind: str) -> None:
    for path in (
        "/v1/images/generations",
        "/v1/lineages/pets/concepts",
        "/v1/lineages/pets/classify",
        "/v1/hooks/mlflow",
    ):
        sound(serving.client.post(path, content=body, headers={"Content-Type": kind}))
