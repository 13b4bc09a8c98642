"""A real MLflow server for the session, started as `palimpsest up` starts it."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest

from services.backends import backend_environment
from services.errors import UnavailableError
from services.local_stack import LocalStack, mlflow_command, mlflow_environment
from services.objects import ObjectStore, open_store
from services.postgres import postgres_binary, postgres_folder
from services.seaweedfs import PORTS, weed_binary
from services.settings import Settings
from tests.ports import free_ports
from tests.s3 import S3Server, sockets

_START_SECONDS = 600


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a running server with SQLite and a directory as the store."""
    with running(Settings(home=tmp_path_factory.mktemp("stack"), mlflow_port=free_ports(1)[0])) as settings:
        yield settings


@pytest.fixture(scope="session")
def mlflow_server_on_postgres_s3(
    tmp_path_factory: pytest.TempPathFactory, s3: S3Server, postgres: Settings
) -> Iterator[Settings]:
    """Settings of a running server with PostgreSQL and a bucket as the store."""
    settings = Settings(
        home=tmp_path_factory.mktemp("stack-postgres-s3"),
        mlflow_port=free_ports(1)[0],
        backend="postgres-s3",
        postgres_port=postgres.postgres_port,
        store=f"s3://{s3.bucket}/stack-{uuid4().hex}",
        s3_endpoint=s3.endpoint,
    )
    with running(settings):
        yield settings


@pytest.fixture(params=["directory", "postgres-s3"])
def stack_settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of a running server: on SQLite and a directory, then on PostgreSQL and S3."""
    name = "mlflow_server" if request.param == "directory" else "mlflow_server_on_postgres_s3"
    settings: Settings = request.getfixturevalue(name)
    return settings


@pytest.fixture
def stack_store(stack_settings: Settings) -> ObjectStore:
    """The store of `stack_settings`."""
    return open_store(stack_settings)


@contextmanager
def running(settings: Settings) -> Iterator[Settings]:
    """A server as `palimpsest up` starts it, for the body of a `with`."""
    log_path = settings.home / "mlflow.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            mlflow_command(settings),
            env=mlflow_environment(settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the server's workers end with its process group
        )
    try:
        _await(process, f"{settings.mlflow}/health", log_path)
        yield settings
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def backend_reached(settings: Settings) -> Iterator[None]:
    """Have the backend's variables for the body of a `with`."""
    before = dict(os.environ)
    os.environ.update(backend_environment(settings))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def own_servers(settings: Settings) -> Iterator[None]:
    """The backend's servers may be started in the body of a `with`: nothing of them is left, nor of their variables.

    Skips where they are not installed.
    """
    try:
        postgres_binary("initdb")
        weed_binary()
    except UnavailableError as error:
        pytest.skip(f"NO POSTGRESQL OR S3 SERVER: the backend postgres-s3 is not tested; {error.message}")
    with backend_reached(settings):
        try:
            yield
        finally:
            LocalStack(settings, print).backend_down()
            for path in sockets([settings.s3_port + index for index in range(len(PORTS))]):
                path.unlink(missing_ok=True)
            shutil.rmtree(postgres_folder(settings), ignore_errors=True)


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urlopen(url, timeout=5):  # noqa: S310
                return
        except (URLError, ConnectionError, TimeoutError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not start:\n{log.read_text()[-2000:]}") from error
            time.sleep(0.1)
