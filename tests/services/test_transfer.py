"""Backup, restore and the move between backends, of a real registry, both ways."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy

from services.auth import People
from services.errors import ConflictError, NotFoundError, RefusedError
from services.lineage import LIVE, Registry
from services.objects import open_store
from services.registry_database import schema_state, upgrade_database
from services.runs import Server
from services.settings import Settings
from services.transfer import Copied, State, backup, copy_state, restore, upgrade
from tests.lineages import BASE, LAYOUT, begin, publish
from tests.ports import free_ports
from tests.s3 import S3Server
from tests.stack import running


def _grow(settings: Settings) -> None:
    """Two lineages with branches, aliases, a history, a deleted experiment's name and a failed run."""
    registry = Registry(settings, open_store(settings))
    first = publish(registry, "pets")
    second = publish(registry, "pets", parent=first)
    publish(registry, "pets", parent=first)
    registry.promote("pets", 1, expected=None)
    registry.promote("pets", second.number, expected=1)
    registry.set_live("pets", 1, actor="ada", reason="a roll-back")
    registry.put_artifact(first.run_id, "samples/concepts.png", b"picture")
    registry.log_metrics(first.run_id, {"loss": 0.25, "nan": float("nan")}, step=3)
    registry.end_run(begin(registry, "pets"), "FAILED")
    publish(registry, "mugs", seed=3)
    People(open_store(settings)).invite("ada")
    People(open_store(settings)).claim("ada", "pets")
    hook = ["model_version_alias.created"]
    registry._client.create_webhook("palimpsest", "http://127.0.0.1:9/hook", hook, secret="of this installation")
    open_store(settings).put(f"intake/in-{uuid4().hex}/00.png", b"a person's picture")
    open_store(settings).put("leases/pets/000000000001", b"{}")


def _told(settings: Settings) -> dict[str, Any]:
    """Everything that a registry says, as far as people and programs look at it; every byte is verified."""
    registry, client = Registry(settings, open_store(settings)), Server(settings.mlflow).client
    told: dict[str, Any] = {"people": People(open_store(settings)).all()}
    for lineage in registry.lineages():
        versions = registry.versions(lineage)
        told[lineage] = (versions, registry.history(lineage), client.get_registered_model(lineage).description)
        for info in versions:
            registry.fetch(lineage, info.number, layout=LAYOUT, base=BASE)
            registry.fetch_state(lineage, info.number, layout=LAYOUT, base=BASE)
            run = client.get_run(info.run_id)
            told[f"{lineage}@{info.number}"] = (run.data.params, run.data.tags, run.info.start_time)
    return told


def _goes_on(settings: Settings) -> None:
    """New runs and versions get new numbers, and land in the new store."""
    registry = Registry(settings, open_store(settings))
    parent = registry.version("pets", registry.aliases("pets")[LIVE])
    info = publish(registry, "pets", parent=parent, seed=9)
    assert info.number == 4
    assert registry.promote("pets", 4, expected=1)
    assert registry.fetch("pets", 4, layout=LAYOUT, base=BASE)
    assert publish(registry, "new").number == 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, Any]]:
    """An embedded installation, stopped, and what it told."""
    settings = Settings(home=tmp_path_factory.mktemp("source"), mlflow_port=free_ports(1)[0])
    with running(settings):
        _grow(settings)
        return settings, _told(settings)


@pytest.fixture
def postgres_s3(tmp_path: Path, s3: S3Server, postgres: Settings) -> Settings:
    """An empty installation on PostgreSQL and S3."""
    name = f"t{uuid4().hex[:12]}"
    base = postgres.database_url.rpartition("/")[0]
    engine = sqlalchemy.create_engine(f"{base}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return Settings(
        home=tmp_path / "far",
        mlflow_port=free_ports(1)[0],
        database=f"{base}/{name}",
        store=f"s3://{s3.bucket}/{name}",
        s3_endpoint=s3.endpoint,
    )


def test_all_moves_to_postgres_and_s3_and_back_in_a_backup(
    source: tuple[Settings, dict[str, Any]], postgres_s3: Settings, tmp_path: Path
) -> None:
    there, told = source
    postgres_s3.home.mkdir()
    copied = copy_state(State.of(there), State.of(postgres_s3))
    assert copied.objects > 20
    store = open_store(postgres_s3)
    assert [list(store.list(folder)) for folder in ("intake/", "leases/")] == [[], []], "pictures and leases stay"
    with running(postgres_s3):
        assert _told(postgres_s3) == told
        assert list(Server(postgres_s3.mlflow).client.list_webhooks()) == [], "they are the old installation's own"
        _goes_on(postgres_s3)
        later = _told(postgres_s3)
        with pytest.raises(ConflictError, match="MLflow runs"):
            backup(postgres_s3, tmp_path / "saved")
    assert backup(postgres_s3, tmp_path / "saved").objects > copied.objects
    home = Settings(home=tmp_path / "again", mlflow_port=free_ports(1)[0])
    restore(home, tmp_path / "saved")
    with running(home):
        assert _told(home) == later


def test_mlflows_own_people_are_not_copied_and_stay_where_they_are(
    source: tuple[Settings, dict[str, Any]], postgres_s3: Settings, tmp_path: Path
) -> None:
    """A server behind a password has tables of its own in the registry's database, as in compose and kuberay."""
    there, told = source
    engine = sqlalchemy.create_engine(postgres_s3.database_url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as writing:
        for line in ("CREATE TABLE users (username text)", "INSERT INTO users VALUES ('a')"):
            writing.execute(sqlalchemy.text(line))
    copy_state(State.of(there), State.of(postgres_s3))
    with engine.connect() as reading:
        assert reading.execute(sqlalchemy.text("SELECT username FROM users")).scalars().all() == ["a"]
    assert backup(postgres_s3, tmp_path / "saved").rows > 0
    home = Settings(home=tmp_path / "again", mlflow_port=free_ports(1)[0])
    restore(home, tmp_path / "saved")
    with running(home):
        assert _told(home) == told


def test_a_copy_that_was_killed_is_begun_again(source: tuple[Settings, dict[str, Any]], tmp_path: Path) -> None:
    there, target = source[0], State.in_folder(tmp_path / "copy")
    key = next(iter(open_store(there).list("mlflow/")))
    target.store.put(key, open_store(there).get(key))
    assert isinstance(copy_state(State.of(there), target), Copied)


def test_a_refused_target_gets_nothing_back_that_was_deleted_there(
    source: tuple[Settings, dict[str, Any]], tmp_path: Path
) -> None:
    """A dismissed person's token, the files of a version that was forgotten."""
    used = State.in_folder(tmp_path / "used")
    copy_state(State.of(source[0]), used)
    for key in [*used.store.list("people/"), *used.store.list("mlflow/")]:
        used.store.delete(key)
    before = list(used.store.list(""))
    with pytest.raises(ConflictError, match="runs or lineages already"):
        copy_state(State.of(source[0]), used)
    assert list(used.store.list("")) == before


def test_a_target_that_has_something_else_is_refused(source: tuple[Settings, dict[str, Any]], tmp_path: Path) -> None:
    there = source[0]
    key = next(iter(open_store(there).list("mlflow/")))
    State.in_folder(tmp_path / "objects").store.put(key, b"another")
    with pytest.raises(ConflictError, match=r"another .* already"):
        copy_state(State.of(there), State.in_folder(tmp_path / "objects"))
    with pytest.raises(ConflictError, match="has runs or lineages already"):
        copy_state(State.of(there), State(there.database_url, open_store(there)))
    with pytest.raises(ConflictError, match="is not empty"):
        backup(there, there.home)
    with pytest.raises(NotFoundError, match="no database"):
        restore(there, tmp_path / "nothing")


@pytest.mark.parametrize(
    "key", ["mlflow/1/x", "audit/pets/000000009999.json", "people/eve/admin", "owners/people/eve/pets"]
)
def test_what_a_lost_database_left_does_not_live_on_beside_the_copy(
    source: tuple[Settings, dict[str, Any]], tmp_path: Path, key: str
) -> None:
    """Else a person of then would have rights to the lineages of now, and a history more entries than moves."""
    target = State.in_folder(tmp_path / "target")
    target.store.put(key, b"of then")
    with pytest.raises(ConflictError, match=f"not of this copy, such as {key}"):
        copy_state(State.of(source[0]), target)
    assert list(target.store.list("")) == [key]


def test_the_schema_of_an_older_mlflow_is_upgraded_in_place(
    source: tuple[Settings, dict[str, Any]], tmp_path: Path
) -> None:
    """As `mlflow db upgrade` does; a copy is refused until then."""
    there, told = source
    old = Settings(home=tmp_path / "old", mlflow_port=free_ports(1)[0])
    copy_state(State.of(there), State.of(old))
    engine = sqlalchemy.create_engine(old.database_url)
    before = _downgrade(engine)
    engine.dispose()
    assert schema_state(old.database_url) == "old", before
    with pytest.raises(RefusedError, match="palimpsest upgrade"):
        backup(old, tmp_path / "saved")
    assert upgrade(old)
    assert not upgrade(old)
    with running(old):
        assert _told(old) == told


def _downgrade(engine: sqlalchemy.Engine) -> str:
    """Take back the newest of MLflow's migrations that can be taken back; the revision that is left."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, _get_schema_version

    config = _get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    return str(_get_schema_version(engine))


def test_an_empty_database_gets_the_current_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(NotFoundError):
        schema_state(url)
    sqlalchemy.create_engine(url).connect().close()
    assert schema_state(url) == "empty"
    upgrade_database(url)
    assert schema_state(url) == "current"
