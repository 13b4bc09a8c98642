"""docs/http.md against the OpenAPI document, the schemas and the error tree."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from cp_serve.http import ERRORS, MAX_BODY_BYTES, House, build_app
from cp_serve.samplers import SAMPLERS
from cp_serve.schemas import IGNORED, CompletedEvent, PartialImageEvent, ProgressEvent
from cp_serve.schemas_learning import Finding, Job
from cp_serve.schemas_learning import Progress as JobProgress
from services import errors
from services.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
PLAIN = {"invalid_json", "bad_request", "timeout", "method_not_allowed", "unsupported_media_type"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    nothing: Any = None
    return build_app(House(Settings(), nothing, nothing, nothing)).openapi()


def rows(first_column: str) -> list[list[str]]:
    """Cells of the one table whose first column is called so."""
    lines = [*TEXT.splitlines(), ""]
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |")]
    table = lines[start + 2 : lines.index("", start)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), f"`{path}`", operation


def test_the_table_has_exactly_the_routes_that_exist(document: dict[str, Any]) -> None:
    documented = [(method, path) for method, path, *_ in rows("method")]
    assert sorted(documented) == sorted((method, path) for method, path, _ in operations(document))


def test_every_status_of_the_table_is_in_the_document(document: dict[str, Any]) -> None:
    statuses = {(method, path): cell.split(", ") for method, path, _, cell in rows("method")}
    for method, path, operation in operations(document):
        assert set(statuses[method, path]) <= operation["responses"].keys()


def test_every_error_of_the_document_is_the_error_model(document: dict[str, Any]) -> None:
    reference = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for _, _, operation in operations(document):
        found = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert sorted(map(int, found)) == sorted(ERRORS)
        assert all(answer["content"] == reference for answer in found.values())
    assert "HTTPValidationError" not in document["components"]["schemas"]


def limits(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "const" in field:
        return f"`{field['const']}`" if isinstance(field["const"], str) else f"`{json.dumps(field['const'])}`"
    if field["type"] == "boolean":
        return "`true`, `false`"
    if "exclusiveMinimum" in field:
        return f"more than {field['exclusiveMinimum']:.0f}, up to {field['maximum']:.0f}"
    if field["type"] == "string":
        return f"{field.get('minLength', 0)} to {field['maxLength']} characters"
    return f"{field['minimum']:.0f} to {field.get('maximum', field.get('exclusiveMaximum', 0) - 1):.0f}"


def test_the_fields_their_defaults_and_limits(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["GenerationRequest"]
    documented = rows("field")
    assert [row[0] for row in documented] == [f"`{name}`" for name in schema["properties"] if name not in IGNORED]
    for name, kind, default, limit in documented:
        field = schema["properties"][name.strip("`")]
        plain = field | next((option for option in field.get("anyOf", []) if option["type"] != "null"), {})
        assert (kind, limit) == (plain["type"], limits(plain)), name
        if default == "required":
            assert name.strip("`") in schema["required"]
        else:
            expected = None if default == "none" else json.loads(default.strip("`"))
            assert field.get("default") == expected, name


def test_the_fields_of_a_form(document: dict[str, Any]) -> None:
    schema = _form(document, "/v1/lineages/{lineage}/concepts")
    documented = {row[0].strip("`"): row[1] for row in rows("form field")}
    assert list(documented) == [name for name in schema["properties"] if name != "images"]
    assert {name for name, default in documented.items() if default == "required"} == set(schema["required"]) - {
        "images"
    }
    for name in _form(document, "/v1/lineages/{lineage}/classify")["properties"]:
        assert f"`{name}`" in TEXT


def _form(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    found: dict[str, Any] = content["multipart/form-data"]["schema"]
    return found


def test_the_events_and_what_is_in_them() -> None:
    documented = {row[0].strip("`"): row[2] for row in rows("event")}
    for kind in (PartialImageEvent, CompletedEvent, ProgressEvent):
        name = kind.model_fields["type"].default
        told = documented[name] + (documented["image_generation.partial_image"] if kind is CompletedEvent else "")
        assert all(f"`{field}`" in told for field in kind.model_fields if field != "type"), name
    for kind in (Job, JobProgress):
        assert all(f"`{field}`" in TEXT for field in kind.model_fields if field not in ("id", "object"))
    kinds = get_args(Finding.model_fields["kind"].annotation)
    assert all(f"`{kind}`" in TEXT for kind in kinds)


def test_the_samplers() -> None:
    assert all(f"`{sampler}`" in TEXT for sampler in SAMPLERS)


def test_what_has_no_effect_is_named() -> None:
    assert ", ".join(f"`{name}`" for name in IGNORED) in " ".join(TEXT.split())


def test_the_errors_their_statuses_and_codes() -> None:
    documented = {(int(row[0]), code.strip("`")) for row in rows("status") for code in row[1].split(", ")}
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    ours = {(kind.status, kind.code) for kind in tree if issubclass(kind, errors.PalimpsestError)}
    assert {code for _, code in documented - ours} == PLAIN
    assert ours <= documented
    assert {status for status, _ in documented} == set(ERRORS)


def test_the_limit_of_a_body() -> None:
    assert TEXT.count(f"{MAX_BODY_BYTES // 1024} KiB") == 1


def test_the_example_in_python_is_python() -> None:
    (example,) = [block.removeprefix("python\n") for block in TEXT.split("```") if block.startswith("python\n")]
    ast.parse(example)
