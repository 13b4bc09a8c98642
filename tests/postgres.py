"""A real PostgreSQL server for the session, made and started as `palimpsest up --backend postgres-s3` does."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.errors import UnavailableError
from services.postgres import (
    make_postgres,
    passwords,
    postgres_binary,
    postgres_command,
    postgres_folder,
    postgres_ready,
)
from services.settings import Settings
from tests.ports import free_ports

_START_SECONDS = 600


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a running server with an empty database `mlflow`; skips where PostgreSQL is not installed.

    The session's `PGPASSFILE` is its own.
    """
    try:
        postgres_binary("initdb")
    except UnavailableError:
        pytest.skip("NO POSTGRESQL: the PostgreSQL half of this is not tested; apt-get install postgresql")
    home = tmp_path_factory.mktemp("postgres")
    settings = Settings(home=home, backend="postgres-s3", postgres_port=free_ports(1)[0])
    make_postgres(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(passwords(settings)))
        try:
            with serving(settings):
                yield settings
        finally:
            shutil.rmtree(postgres_folder(settings))


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """A server of databases that were made, for the body of a `with`."""
    log_path = settings.home / "log"
    with log_path.open("wb") as log:
        command = [*postgres_command(settings), "-c", "fsync=off"]  # what it holds need not outlive the machine
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _await(process, settings, log_path)
            yield
        finally:
            process.terminate()
            process.wait()


def _await(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not postgres_ready(settings):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
