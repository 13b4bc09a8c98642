"""The manifest: what its digest covers, what is refused, and which names there may be."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from services.errors import InputError, RefusedError
from services.manifest import (
    MAX_RANK,
    BaseRef,
    Concept,
    Content,
    FileRef,
    Manifest,
    Provenance,
    canonical,
    check_name,
    sha256,
)

DIGEST = sha256(b"")


def content(**changes: Any) -> Content:
    values: dict[str, Any] = {
        "lineage": "ann",
        "base": BaseRef(id="embedded", revision=DIGEST),
        "rank": 4,
        "alpha": 4,
        "concepts": (Concept(name="mug", noun="mug"), Concept(name="fox", noun="", vectors=2)),
        "files": {"adapter.safetensors": FileRef(sha256=DIGEST, bytes=3)},
    }
    return Content(**values | changes)


def manifest(**metrics: float) -> Manifest:
    provenance = Provenance(
        parent=None, parent_digest=None, method="ewc_dc", settings={}, metrics=metrics, run_id="r", created="now"
    )
    return Manifest(digest=content().digest, content=content(), provenance=provenance)


def spoiled(path: str, value: object) -> bytes:
    """The manifest's bytes with one field replaced."""
    tree = json.loads(manifest().to_bytes())
    *parents, last = path.split(".")
    branch = tree
    for key in parents:
        branch = branch[key]
    branch[last] = value
    return json.dumps(tree).encode()


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert Manifest.from_bytes(manifest(loss=0.5).to_bytes()) == manifest(loss=0.5)


def test_metrics_that_are_not_numbers_survive_the_file() -> None:
    found = Manifest.from_bytes(manifest(loss=math.nan, top=math.inf).to_bytes()).provenance.metrics
    assert math.isnan(found["loss"])
    assert found["top"] == math.inf


def test_canonical_json_is_the_same_whatever_the_order() -> None:
    assert canonical({"b": 1, "a": "ö"}) == canonical({"a": "ö", "b": 1}) == '{"a":"ö","b":1}'.encode()


def test_the_digest_is_the_hash_of_the_canonical_content() -> None:
    assert content().digest == sha256(canonical(json.loads(content().model_dump_json())))


@pytest.mark.parametrize(
    "change",
    [
        {"lineage": "bob"},
        {"base": BaseRef(id="embedded", revision=sha256(b"x"))},
        {"rank": 5},
        {"alpha": 4.5},
        {"concepts": ()},
        {"files": {}},
    ],
)
def test_every_part_of_the_content_is_in_the_digest(change: dict[str, Any]) -> None:
    assert content(**change).digest != content().digest


def test_provenance_is_not_in_the_digest() -> None:
    assert manifest(loss=0.1).digest == manifest(loss=0.2).digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("content.rank", 5),
        ("content.concepts", []),
        ("content.files", {}),
        ("content.base.revision", sha256(b"other")),
        ("digest", sha256(b"other")),
    ],
)
def test_a_changed_content_or_digest_is_refused(path: str, value: object) -> None:
    with pytest.raises(RefusedError, match="does not match its digest"):
        Manifest.from_bytes(spoiled(path, value))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("content.schema_version", 2, "content.schema_version"),
        ("content.rank", 0, "content.rank"),
        ("content.rank", MAX_RANK + 1, "content.rank"),
        ("content.alpha", 0, "content.alpha"),
        ("content.alpha", "Infinity", "content.alpha"),
        ("content.concepts", [{"name": "A b", "noun": ""}], "content.concepts.0.name"),
        ("content.concepts", [{"name": "mug", "noun": "", "vectors": 0}], "content.concepts.0.vectors"),
        ("content.surprise", 1, "content.surprise"),
        ("provenance.metrics", {"loss": None}, "provenance.metrics.loss"),
    ],
)
def test_a_manifest_of_another_schema_is_refused_and_the_field_named(path: str, value: object, named: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Manifest.from_bytes(spoiled(path, value))
    assert f"({named}: " in refused.value.message


def test_a_manifest_of_a_newer_schema_says_who_may_know_it() -> None:
    with pytest.raises(RefusedError, match=r"\(content.schema_version: .*\): a newer Palimpsest may know it"):
        Manifest.from_bytes(spoiled("content.schema_version", 2))


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"\x80\x04K\x01.", b"[" * 100_000])
def test_garbage_is_refused_as_no_manifest(data: bytes) -> None:
    with pytest.raises(RefusedError, match="manifest is not valid"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("name", ["a", "mug", "my-mug-2", "a" * 32])
def test_names(name: str) -> None:
    assert check_name(name, "concept") == name
    assert Concept(name=name, noun="mug").name == name


@pytest.mark.parametrize("name", ["", "Mug", "2mug", "-mug", "my_mug", "my mug", "mug\n", "<mug>", "a" * 33, "é", "."])
def test_what_is_not_a_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InputError, match="lower-case letter") as refused:
        check_name(name, "concept")
    assert refused.value.param == "concept"
    assert refused.value.message.startswith(f"concept: {name!r} is not a name; use ")
    with pytest.raises(ValidationError):
        Concept(name=name, noun="mug")


def test_a_reserved_name_is_refused() -> None:
    with pytest.raises(InputError, match="lineage: `base` is reserved"):
        check_name("base", "lineage")
