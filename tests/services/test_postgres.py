"""PostgreSQL of the local stack: what is made once is never made again, and its password is good at every port."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from services import postgres
from services.errors import ConflictError, UnavailableError
from services.postgres import make_postgres, passwords, postgres_binary, postgres_folder
from services.settings import Settings
from tests.ports import free_ports
from tests.postgres import serving


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of a home whose databases are taken away after the test; skips where PostgreSQL is not installed."""
    try:
        postgres_binary("initdb")
    except UnavailableError as error:
        pytest.skip(f"NO POSTGRESQL: the local stack's is not tested; {error.message}")
    found = Settings(home=tmp_path, backend="postgres-s3", postgres_port=free_ports(1)[0])
    yield found
    shutil.rmtree(postgres_folder(found), ignore_errors=True)


@contextmanager
def signed_in(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor of the running server, with the password that was kept."""
    monkeypatch.setenv("PGPASSFILE", str(passwords(settings)))
    address = {"host": settings.host, "port": settings.postgres_port, "user": postgres.USER}
    with serving(settings):
        connection = psycopg2.connect(**address, dbname=postgres.DATABASE)
        with connection, connection.cursor() as cursor:
            yield cursor
        connection.close()


def test_the_password_is_good_at_another_port(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    make_postgres(settings)
    moved = settings.model_copy(update={"postgres_port": free_ports(1)[0]})
    make_postgres(moved)
    with signed_in(moved, monkeypatch) as cursor:
        cursor.execute("SELECT 1")


def test_databases_whose_password_is_gone_are_left_as_they_are(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are opened again as docs/operations.md says."""
    make_postgres(settings)
    with signed_in(settings, monkeypatch) as cursor:
        cursor.execute("CREATE TABLE kept (x int)")
    passwords(settings).unlink()
    with pytest.raises(ConflictError, match=r"pgpass.* is gone: put it back, or give them a new password"):
        make_postgres(settings)

    data = postgres_folder(settings) / "data"
    command = [*postgres._as_owner(), postgres_binary("postgres"), "--single", "-D", str(data), "postgres"]
    words = f"ALTER ROLE {postgres.USER} PASSWORD 'another'"
    subprocess.run(command, input=words, text=True, check=True, capture_output=True, cwd=data.parent)
    passwords(settings).touch(mode=0o600)
    passwords(settings).write_text(f"*:*:*:{postgres.USER}:another\n")
    make_postgres(settings)
    with signed_in(settings, monkeypatch) as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize("made", [0, 1])
def test_a_first_try_that_was_killed_is_begun_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    """Before the first program, or between it and the next."""

    class KilledError(Exception):
        pass

    honest, ran = postgres._run, list[str]()

    def mortal(command: list[str], folder: Path, words: str = "") -> None:
        if len(ran) == made:
            raise KilledError
        ran.append(command[0])
        honest(command, folder, words)

    monkeypatch.setattr(postgres, "_run", mortal)
    with pytest.raises(KilledError):
        make_postgres(settings)
    assert not (postgres_folder(settings) / "data").exists(), "nobody takes it for a whole one"
    kept = passwords(settings).read_text()
    monkeypatch.setattr(postgres, "_run", honest)
    make_postgres(settings)
    assert passwords(settings).read_text() == kept
    with signed_in(settings, monkeypatch) as cursor:
        cursor.execute("SELECT 1")


def test_a_machine_without_postgresql_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("os.getuid", lambda: 0)
    monkeypatch.setattr("pwd.getpwnam", nobody)
    with pytest.raises(UnavailableError, match="apt-get install postgresql"):
        postgres_folder(Settings(home=tmp_path))
