"""Where the local stack keeps its registry and its artifacts.

`embedded`     SQLite and a directory, in our home: nothing to install
`postgres-s3`  a PostgreSQL server and an S3-compatible one, started beside MLflow: what a cluster has, on one machine

The choice is remembered in `<home>/backend`, so that every later command finds it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.errors import ConflictError
from services.mlflow_auth import client_environment
from services.objects import make_bucket
from services.postgres import make_postgres, passwords, postgres_command, postgres_folder, postgres_ready
from services.seaweedfs import PORTS, make_owner, read_owner, weed_command, weed_ready
from services.settings import Settings


@dataclass(frozen=True)
class Server:
    """One server of a backend.

    Attributes:
        prepare: makes what it needs; called before each start.
        ready: whether it takes requests.
        ports: those it listens on -> the setting that moves them.
    """

    name: str
    command: Callable[[], Sequence[str]]
    prepare: Callable[[], None]
    ready: Callable[[], bool]
    ports: Mapping[int, str]


def backend_servers(settings: Settings) -> tuple[Server, ...]:
    """The servers that the backend needs besides MLflow, in the order in which they start."""
    if settings.backend == "embedded":
        return ()
    postgres = Server(
        "postgres",
        lambda: postgres_command(settings),
        lambda: make_postgres(settings),
        lambda: postgres_ready(settings),
        {settings.postgres_port: "PALIMPSEST_POSTGRES_PORT"},
    )
    ports = [settings.s3_port + index for index in range(len(PORTS))]
    s3 = Server(
        "s3",
        lambda: weed_command(s3_folder(settings), ports, host=settings.host),
        lambda: _lend(settings),
        lambda: (
            weed_ready(ports, host=settings.host) and make_bucket(settings.store_uri, endpoint=settings.s3_endpoint)
        ),
        dict.fromkeys(ports, "PALIMPSEST_S3_PORT"),
    )
    return postgres, s3


def s3_folder(settings: Settings) -> Path:
    """Where the local S3 server keeps its objects."""
    return settings.home / "s3"


def _lend(settings: Settings) -> None:
    make_owner(s3_folder(settings))
    os.environ.update(backend_environment(settings))


def backend_environment(settings: Settings) -> dict[str, str]:
    """The variables with which this process and its children reach the backend, and sign in to MLflow."""
    found, owner = dict(client_environment(settings)), read_owner(s3_folder(settings))
    if settings.backend == "embedded" or owner is None:
        return found
    return found | {
        "PGPASSFILE": str(passwords(settings)),
        "AWS_ACCESS_KEY_ID": owner.access_key,
        "AWS_SECRET_ACCESS_KEY": owner.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def remember(settings: Settings) -> None:
    """Make the backend the one of every later command."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.remembered.write_text(f"{settings.backend}\n")


def check_choice(settings: Settings) -> None:
    """Refuse to start on a backend while another one of this home has the lineages.

    After a migration the backend that they were moved from has an old copy of them.

    Raises:
        ConflictError: another one has them.
    """
    used = _used(settings)
    if used in {"", settings.backend}:
        return
    moves = f"`palimpsest migrate --backend {settings.backend}` moves them"
    if old := [path for path in _places(settings) if path.exists()]:
        moves += f", once the older copy is taken away ({', '.join(map(str, old))})"
    raise ConflictError(f"The lineages of {settings.home} are in the backend `{used}`: {moves}.", param="backend")


def _used(settings: Settings) -> str:
    """The backend that has a home's lineages; empty: none yet."""
    if settings.remembered.is_file():
        return settings.remembered.read_text().strip()
    return "embedded" if (settings.home / "mlflow.db").exists() else ""


def _places(settings: Settings) -> tuple[Path, Path]:
    """Where a backend keeps its database and its objects."""
    if settings.backend == "embedded":
        return settings.home / "mlflow.db", settings.home / "store"
    return postgres_folder(settings) / "data", s3_folder(settings)
