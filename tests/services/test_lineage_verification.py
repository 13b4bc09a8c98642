"""Versions that must not be used, forged and damaged with what an attacker or a bad disk can do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from services.errors import (
    NotFoundError,
    RefusedError,
)
from services.lineage import LIVE, Registry
from services.objects import ObjectStore, open_store
from services.settings import Settings
from tests.lineages import BASE, LAYOUT, OTHER_BASE, Mlflow, begin, fetch, folder, publish

TAMPERED: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("adapter.safetensors", "damaged", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ("adapter.safetensors", "damaged", lambda data: data[:40]),
    ("tokens.safetensors", "damaged", lambda data: data + b"x"),
    ("manifest.json", "not valid", lambda data: data[:40]),
    ("manifest.json", "was changed", lambda data: data.replace(b'"rank": 2', b'"rank": 3')),
]


def test_tampered_files_are_refused(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    info = publish(registry, lineage)
    place = folder(stack_store, mlflow_client, info)
    for name, reason, change in TAMPERED:
        whole = stack_store.get(f"{place}/{name}")
        stack_store.put(f"{place}/{name}", change(whole))
        with pytest.raises(RefusedError, match=reason):
            fetch(registry, info)
        stack_store.put(f"{place}/{name}", whole)
        assert fetch(registry, info)
    for name in ("tokens.safetensors", "manifest.json"):
        stack_store.delete(f"{place}/{name}")
        with pytest.raises(RefusedError, match="missing"):
            fetch(registry, info)


def test_a_tampered_state_is_refused(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    info = publish(registry, lineage)
    stack_store.put(f"{folder(stack_store, mlflow_client, info)}/training_state.safetensors", b"x")
    assert fetch(registry, info), "serving does not read it"
    with pytest.raises(RefusedError, match="damaged"):
        registry.fetch_state(lineage, 1, layout=LAYOUT, base=BASE)


def test_numbers_that_are_not_finite_are_refused(registry: Registry, lineage: str) -> None:
    info = publish(registry, lineage, spoil=float("nan"))
    with pytest.raises(RefusedError, match="not finite"):
        fetch(registry, info)


def test_another_base_is_refused_by_name(registry: Registry, lineage: str) -> None:
    publish(registry, lineage)
    for read in (registry.fetch, registry.fetch_state):
        with pytest.raises(RefusedError, match=r"another base model: embedded \(.*this is other"):
            read(lineage, 1, layout=LAYOUT, base=OTHER_BASE)


def test_a_whole_version_put_in_anothers_place_is_refused(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    mine, theirs = publish(registry, lineage), publish(registry, f"{lineage}-b", seed=1)
    for key in list(stack_store.list(f"{folder(stack_store, mlflow_client, theirs)}/")):
        name = key.rpartition("/")[2]
        stack_store.put(f"{folder(stack_store, mlflow_client, mine)}/{name}", stack_store.get(key))
    with pytest.raises(RefusedError, match="another version's"):
        fetch(registry, mine)
    mlflow_client.set_model_version_tag(lineage, "1", "palimpsest.digest", theirs.digest)
    with pytest.raises(RefusedError, match="another version's"):
        fetch(registry, mine)


def rogue(mlflow_client: Mlflow, lineage: str, source: str, run_id: str, tags: Mapping[str, str]) -> int:
    """A version that somebody registered in MLflow directly."""
    made = mlflow_client.create_model_version(lineage, source, run_id, tags=dict(tags), await_creation_for=0)
    return int(made.version)


def test_rogue_sources_are_refused(registry: Registry, mlflow_client: Mlflow, lineage: str) -> None:
    info, other = publish(registry, lineage), publish(registry, lineage, seed=1)
    own = mlflow_client.get_model_version(lineage, str(info.number))
    sources = [
        f"{own.source}#x",
        f"{own.source}/deeper",
        own.source.removesuffix("/adapter"),
        "s3://elsewhere/mlflow/1/2/artifacts/adapter",
    ]
    if own.source.startswith("s3:"):
        sources += [mlflow_client.get_model_version(lineage, str(other.number)).source, f"{own.source}?x"]
    else:  # here MLflow sees by itself what is another run's
        sources += [f"file://{own.source}"]
    for source in sources:
        number = rogue(mlflow_client, lineage, source, info.run_id, own.tags)
        mlflow_client.set_registered_model_alias(lineage, LIVE, str(number))
        with pytest.raises(RefusedError, match="outside its own run's folder"):
            registry.fetch(lineage, number, layout=LAYOUT, base=BASE)
        with pytest.raises(RefusedError, match="outside its own run's folder"):
            registry.set_live(lineage, number)


def test_a_run_whose_artifacts_are_elsewhere_is_refused(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    own = mlflow_client.get_model_version(lineage, str(publish(registry, lineage).number))
    place = f"{stack_store.root}/intake/{uuid4().hex}"
    run = mlflow_client.create_run(mlflow_client.create_experiment(uuid4().hex, artifact_location=place))
    source = f"{run.info.artifact_uri}/adapter"
    number = rogue(mlflow_client, lineage, source, run.info.run_id, own.tags)
    with pytest.raises(RefusedError, match="--default-artifact-root"):
        registry.fetch(lineage, number, layout=LAYOUT, base=BASE)
    with pytest.raises(RefusedError, match="--default-artifact-root"):
        registry.put_artifact(run.info.run_id, "samples/x.png", b"x")


def test_a_server_with_another_artifact_root_is_refused(mlflow_server: Settings, tmp_path: Path, lineage: str) -> None:
    settings = mlflow_server.model_copy(update={"store": str(tmp_path / "elsewhere")})
    with pytest.raises(RefusedError, match=f"--default-artifact-root {tmp_path}/elsewhere/mlflow"):
        begin(Registry(settings, open_store(settings)), lineage)


@pytest.mark.parametrize("tags", [{}, {"palimpsest.digest": "x"}, {"palimpsest.parent": "x"}])
def test_a_version_without_our_tags_does_not_exist_for_us(
    registry: Registry, mlflow_client: Mlflow, lineage: str, tags: Mapping[str, str]
) -> None:
    info = publish(registry, lineage)
    own = mlflow_client.get_model_version(lineage, "1")
    all_tags = own.tags | tags if "palimpsest.parent" in tags else tags
    number = rogue(mlflow_client, lineage, own.source, info.run_id, all_tags)
    assert [version.number for version in registry.versions(lineage)] == [1]
    calls: list[Callable[[], object]] = [
        lambda: registry.set_live(lineage, number),
        lambda: registry.resolve(lineage, str(number)),
        lambda: registry.fetch(lineage, number, layout=LAYOUT, base=BASE),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
