"""MLflow as the compose stack starts it, on PostgreSQL: no default opens it, and nobody sees what was not granted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest
import requests

from services.postgres import passwords
from services.settings import Settings
from tests.infra.files import INFRA, compose
from tests.ports import free_ports

PASSWORD = "generated-0123456789-0123456789-0123456789"
_ADMIN = ("palimpsest", PASSWORD)
_START_SECONDS = 600


def database(postgres: Settings, name: str) -> tuple[str, str]:
    """A new database's URI, without the password, and the password."""
    *_, user, password = passwords(postgres).read_text().strip().split(":")
    where = {"host": postgres.host, "port": postgres.postgres_port, "user": user, "password": password}
    connection = psycopg2.connect(dbname="postgres", **where)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"postgresql+psycopg2://{user}@{postgres.host}:{postgres.postgres_port}/{name}", password


def start(folder: Path, port: int, backend: tuple[str, str], *, password: str) -> subprocess.Popen[bytes]:
    """The compose stack's server; as there, one database holds the registry and its people."""
    uri, database_password = backend
    service = compose()["services"]["mlflow"]
    auth, there = (INFRA / "mlflow" / "basic_auth.ini").read_text(), service["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert f"database_uri = {there}\n" in auth
    (folder / "basic_auth.ini").write_text(auth.replace(there, uri))
    program, *arguments = service["command"]
    assert program == "mlflow"
    here = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    assert set(here) <= set(arguments)
    hosts = f"--allowed-hosts=127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", *(here.get(flag, flag) for flag in arguments), hosts]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
    environment = inherited | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PGPASSWORD": database_password,
        "PYTHONSAFEPATH": "1",
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, postgres: Settings) -> Iterator[str]:
    folder, (port,) = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    process = start(folder, port, database(postgres, "behind_a_password"), password=PASSWORD)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def healthy(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def call(url: str, route: str, who: tuple[str, str] | None, **body: object) -> requests.Response:
    path = f"{url}/api/2.0/mlflow/{route}"
    if body:
        return requests.post(path, json=body, auth=who, timeout=60)
    return requests.get(path, auth=who, timeout=60)


@pytest.mark.parametrize("who", [None, ("admin", "password1234"), ("palimpsest", "password1234"), ("palimpsest", "")])
def test_nobody_gets_in_with_a_default(url: str, who: tuple[str, str] | None) -> None:
    assert call(url, "registered-models/search", who).status_code == 401
    assert call(url, "registered-models/create", who, name="theirs").status_code == 401


def test_a_new_person_sees_nothing_until_it_is_granted(url: str) -> None:
    """The registry's default for everybody is no permission, not MLflow's own READ."""
    person = ("ann", "her-own-password-0123456789")
    assert call(url, "registered-models/create", _ADMIN, name="pets").ok
    assert call(url, "users/create", _ADMIN, username=person[0], password=person[1]).ok
    assert call(url, "registered-models/get?name=pets", _ADMIN).ok
    assert call(url, "registered-models/get?name=pets", person).status_code == 403
    assert call(url, "registered-models/search", person).json().get("registered_models", []) == []
    alias = {"name": "pets", "alias": "live", "version": "1"}
    assert call(url, "registered-models/alias", person, **alias).status_code == 403


def test_it_does_not_start_without_a_password(tmp_path: Path, postgres: Settings) -> None:
    process = start(tmp_path, free_ports(1)[0], database(postgres, "without_a_password"), password="")
    try:
        assert process.wait(_START_SECONDS) != 0
    finally:
        end(process)
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in (tmp_path / "log").read_text()
