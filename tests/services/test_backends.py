"""The backend `postgres-s3` of the local stack, started, stopped and moved to as a person does."""

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from services.backends import backend_environment, backend_servers, check_choice, remember
from services.cli import main
from services.errors import ConflictError, InputError, UnavailableError
from services.lineage import Registry
from services.local_stack import LocalStack
from services.objects import open_store
from services.postgres import passwords, postgres_folder
from services.processes import find
from services.seaweedfs import PORTS
from services.settings import Settings, get_settings
from tests.lineages import BASE, LAYOUT, publish
from tests.ports import free_ports, free_row
from tests.stack import own_servers, running


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own whose settings every command reads, and what is left of its servers is taken away."""
    mlflow, postgres = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="p") as folder:
        values = {"home": folder, "mlflow_port": mlflow, "postgres_port": postgres, "s3_port": free_row(len(PORTS))}
        for name, value in values.items():
            monkeypatch.setenv(f"PALIMPSEST_{name.upper()}", str(value))
        get_settings.cache_clear()
        with own_servers(Settings(backend="postgres-s3")):
            yield Path(folder)
    get_settings.cache_clear()


def test_lineages_move_to_servers_and_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedded = Settings()
    with running(embedded):
        info = publish(Registry(embedded, open_store(embedded)), "pets")
    with pytest.raises(ConflictError, match=r"palimpsest migrate --backend postgres-s3` moves them.$"):
        check_choice(Settings(backend="postgres-s3"))
    with pytest.raises(ConflictError, match="palimpsest migrate --backend postgres-s3"):
        LocalStack(Settings(backend="postgres-s3"), print).up()

    assert main(["migrate", "--backend", "postgres-s3"]) == 0, capsys.readouterr().err
    get_settings.cache_clear()
    moved = get_settings()
    assert (moved.backend, moved.store_uri) == ("postgres-s3", "s3://palimpsest/store")
    assert all(find(server.name, folder=home / "run") is None for server in backend_servers(moved)), "stopped again"
    check_choice(moved)
    old = f"older copy is taken away .{home}/mlflow.db, {home}/store."
    with pytest.raises(ConflictError, match=f"are in the backend `postgres-s3`: .*{old}"):
        LocalStack(Settings(backend="embedded"), print).up()

    stack = LocalStack(moved, print)
    stack.backend_up()
    stack.backend_up()
    assert [stack.status()[name] for name in ("postgres", "s3")] == ["up", "up"]
    with running(moved):
        registry = Registry(moved, open_store(moved))
        assert registry.version("pets", 1) == info
        assert registry.fetch("pets", 1, layout=LAYOUT, base=BASE)
        publish(registry, "mugs")
    stack.backend_down()

    for name in ("mlflow.db", "store"):
        path = home / name
        path.rename(home / f"old-{name}")
    assert main(["migrate", "--backend", "embedded"]) == 0, capsys.readouterr().err
    get_settings.cache_clear()
    with running(get_settings()):
        assert Registry(get_settings(), open_store(get_settings())).lineages() == ["mugs", "pets"]
    old = f"older copy is taken away .{postgres_folder(moved)}/data, {home}/s3."
    with pytest.raises(ConflictError, match=f"are in the backend `embedded`: .*{old}"):
        check_choice(moved)


def test_a_home_that_was_begun_on_servers_is_not_begun_again_in_files(home: Path) -> None:
    remember(Settings(backend="postgres-s3"))
    check_choice(Settings(backend="postgres-s3"))
    with pytest.raises(ConflictError, match="in the backend `postgres-s3`: `palimpsest migrate --backend embedded`"):
        LocalStack(Settings(backend="embedded"), print).up()
    assert not (home / "mlflow.db").exists()


def test_a_backend_that_could_not_be_started_holds_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that were begun and never had a registry: the other backend may be chosen."""
    monkeypatch.setattr("services.backends.make_bucket", lambda *_, **__: False)
    monkeypatch.setattr("services.local_stack._START_SECONDS", 1)
    with pytest.raises(UnavailableError):
        LocalStack(Settings(backend="postgres-s3"), print).up()
    assert (postgres_folder(Settings(backend="postgres-s3")) / "data").exists()
    check_choice(Settings(backend="embedded"))


def test_secrets_are_made_once_and_are_nobody_elses(home: Path) -> None:
    settings = Settings(backend="postgres-s3")
    assert backend_environment(settings) == {}
    stack = LocalStack(settings, print)
    stack.backend_up()
    first = backend_environment(settings)
    for path in (passwords(settings), home / "s3" / "s3.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for server in backend_servers(settings):
        assert not any(first["AWS_SECRET_ACCESS_KEY"] in word for word in server.command())
        assert find(server.name, folder=home / "run") is not None
    open_store(settings).put("mlflow/x", b"kept")
    with sqlalchemy.create_engine(settings.database_url).connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE kept (x int)"))
        connection.commit()
    wrong = settings.database_url.replace("palimpsest@", "palimpsest:wrong@")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="password"):
        sqlalchemy.create_engine(wrong).connect()
    stack.backend_down()
    stack.backend_up()
    assert backend_environment(settings) == first
    assert open_store(settings).get("mlflow/x") == b"kept"
    with sqlalchemy.create_engine(settings.database_url).connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM kept")).scalar() == 0


def test_the_choice_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    get_settings.cache_clear()
    assert get_settings().backend == "embedded"
    remember(Settings(backend="postgres-s3"))
    get_settings.cache_clear()
    assert get_settings().database_url == "postgresql+psycopg2://palimpsest@127.0.0.1:5433/mlflow"
    monkeypatch.setenv("PALIMPSEST_BACKEND", "embedded")
    get_settings.cache_clear()
    assert get_settings().backend == "embedded", "what is said beats what is remembered"
    monkeypatch.delenv("PALIMPSEST_BACKEND")
    (tmp_path / "backend").write_text("magic")
    get_settings.cache_clear()
    with pytest.raises(InputError, match="PALIMPSEST_BACKEND"):
        get_settings()
    get_settings.cache_clear()
