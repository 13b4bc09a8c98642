"""Open an object store, a directory or S3. The only file that speaks to S3."""

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.directory_store import DirectoryStore, ObjectStore, check_key, check_prefix
from services.errors import InputError, NotFoundError, PalimpsestError, TooLargeError, UnavailableError
from services.settings import Settings

__all__ = [
    "DirectoryStore",
    "ObjectStore",
    "S3Store",
    "check_key",
    "checkpoint_folder",
    "open_store",
    "open_store_at",
    "read_folder",
]

TRAINING = "training"
"""Folder of the store for the checkpoints of running jobs; gone when a job ends."""


def checkpoint_folder(lineage: str, run_id: str = "") -> str:
    """Folder of the store, with a slash at the end, for the checkpoints of a lineage's jobs, or of one run."""
    return f"{TRAINING}/{lineage}/{run_id}/" if run_id else f"{TRAINING}/{lineage}/"


_CONFLICTS = 10  # S3 answers 409 while another write of the same key is under way
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NO_ACCESS = {"NoSuchBucket", "NoSuchKey", "AccessDenied", "403", "404"}


class S3Store(ObjectStore):
    """Objects in a bucket of S3 or of a compatible server that honours `If-None-Match: *`."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str = "") -> None:
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        super().__init__(f"s3://{bucket}/{prefix}".rstrip("/"))
        self._client = _client(endpoint)
        self._server = endpoint or "AWS S3"

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        name = self._name(key)
        with self._errors(key):
            self._client.put_object(Bucket=self._bucket, Key=name, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        """See `ObjectStore.create`."""
        name, mark = self._name(key), uuid4().hex
        with self._errors(key):
            for _ in range(_CONFLICTS):
                status, retried = self._create(name, data, mark)
                if status == 412:  # noqa: PLR2004
                    # A retry after a lost answer meets the object that the first try made.
                    return retried and self._mark(name) == mark
                if status != 409:  # noqa: PLR2004
                    return True
                time.sleep(random.uniform(0.01, 0.2))  # noqa: S311
        raise UnavailableError(f"{self._server} reports write after write of {key}: try again.")

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        name = self._name(key)
        with self._errors(key), self._client.get_object(Bucket=self._bucket, Key=name)["Body"] as body:
            data: bytes = body.read()
            return data

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        name = self._name(key)
        try:
            with self._errors(key):
                self._client.head_object(Bucket=self._bucket, Key=name)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `ObjectStore.list`."""
        return iter(sorted(self._written(prefix)))

    def older(self, prefix: str, moment: float) -> Iterator[str]:
        """See `ObjectStore.older`."""
        return iter(sorted(key for key, written in self._written(prefix).items() if written < moment))

    def _written(self, prefix: str) -> dict[str, float]:
        """Key -> when it was written, in no order: not every server sorts as S3 does."""
        start = self._prefix + check_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
        with self._errors(prefix):
            found = [(str(entry["Key"]), entry["LastModified"]) for page in pages for entry in page.get("Contents", ())]
        # A name with a slash at its end is a folder's marker.
        return {name.removeprefix(self._prefix): at.timestamp() for name, at in found if not name.endswith("/")}

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        name = self._name(key)
        with suppress(NotFoundError), self._errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def files(self) -> Iterator[tuple[str, int]]:
        """Names and bytes of the files in the store's top folder, hidden ones left out.

        Raises:
            InputError: the bucket does not exist or may not be read.
        """
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors("", theirs=True):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"):
                for entry in page.get("Contents", ()):
                    name = str(entry["Key"]).removeprefix(self._prefix)
                    if name and not name.startswith(".") and not name.endswith("/"):
                        yield name, int(entry["Size"])

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Read a file that `files` named, and never more than `max_bytes` of it.

        Raises:
            TooLargeError: it is larger.
            InputError: it may not be read.
        """
        with self._errors(name, theirs=True):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            with answer["Body"] as body:
                data: bytes = b"" if answer["ContentLength"] > max_bytes else body.read(max_bytes + 1)
        if max(len(data), answer["ContentLength"]) > max_bytes:
            raise _too_large(name, max_bytes)
        return data

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _create(self, name: str, data: bytes, mark: str) -> tuple[int, bool]:
        """Status of one conditional write, and whether botocore sent it more than once."""
        try:
            answer = self._client.put_object(
                Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*", Metadata={"mark": mark}
            )
        except ClientError as error:
            answer = error.response
            if answer["ResponseMetadata"]["HTTPStatusCode"] not in {409, 412}:
                raise
        meta = answer["ResponseMetadata"]
        return int(meta["HTTPStatusCode"]), bool(meta.get("RetryAttempts"))

    def _mark(self, name: str) -> str:
        head = self._client.head_object(Bucket=self._bucket, Key=name)
        return str(head["Metadata"].get("mark", ""))

    @contextmanager
    def _errors(self, key: str, *, theirs: bool = False) -> Iterator[None]:
        """Map botocore's errors; in `theirs`, a bucket of the user's, what is missing is the user's error."""
        try:
            yield
        except ClientError as error:
            code = str(error.response["Error"].get("Code", "unknown"))
            if theirs and code in _NO_ACCESS:
                raise InputError(
                    f"{self.root} cannot be read ({code}): check the name and let us read it.", param="images"
                ) from error
            raise self._refusal(code, key) from error
        except BotoCoreError as error:
            reason = type(error).__name__
            raise UnavailableError(
                f"{self._server} does not answer ({reason}): check the endpoint and the AWS_* credentials."
            ) from error

    def _refusal(self, code: str, key: str) -> PalimpsestError:
        if code in {"NoSuchKey", "NotFound", "404"}:
            return NotFoundError(f"There is no object {key} in {self.root}.")
        if code == "NoSuchBucket":
            return UnavailableError(f"{self._server} has no bucket {self._bucket}: create it.")
        return UnavailableError(
            f"{self._server} refused bucket {self._bucket} ({code}): check credentials, policy and server."
        )


def _client(endpoint: str) -> Any:
    """An S3 client with bounded patience: at most 4 tries of at most 25 seconds.

    Raises:
        InputError: the endpoint is not a plain http(s) URL.
    """
    parts = urlsplit(endpoint)
    if endpoint and (parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc):
        raise InputError(
            "The S3 endpoint must be http://host:port or https://…, with credentials in AWS_* variables.",
            param="s3_endpoint",
        )
    session = boto3.session.Session()
    config = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 4},
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation="when_required",  # compatible servers do not know AWS's trailers
        response_checksum_validation="when_required",
    )
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)


def _too_large(name: str, max_bytes: int) -> TooLargeError:
    return TooLargeError(f"{name[:80]!r} is larger than {max_bytes} bytes: make it smaller.", param="images")


def _split(uri: str, param: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`."""
    bucket, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InputError(f"{uri[:200]!r} does not name a bucket: write s3://bucket/prefix.", param=param)
    return bucket, check_prefix(prefix)


def open_store_at(uri: str, *, endpoint: str = "") -> ObjectStore:
    """Open a directory (a path or `file:///…`) or `s3://bucket/prefix` as an object store.

    Raises:
        InputError: it is neither.
    """
    if uri.startswith("s3://"):
        return S3Store(*_split(uri, "store"), endpoint=endpoint)
    path = uri.removeprefix("file://") if uri.startswith("file:///") else uri
    if not path or "://" in path:
        raise InputError(f"{uri[:200]!r} is not a store: give a directory or s3://bucket/prefix.", param="store")
    return DirectoryStore(Path(path))


def open_store(settings: Settings) -> ObjectStore:
    """Open the store that the settings name.

    Raises:
        InputError: they name none.
    """
    return open_store_at(settings.store_uri, endpoint=settings.s3_endpoint)


def make_bucket(uri: str, *, endpoint: str) -> bool:
    """Make the bucket of `s3://bucket/prefix`, unless it is there; whether it can be used now."""
    bucket, _ = _split(uri, "store")
    client = _client(endpoint)
    there = (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists)
    try:
        with suppress(*there):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=".ready", Body=b"")
    except (ClientError, BotoCoreError):
        return False
    finally:
        client.close()
    return True


def read_folder(uri: str, *, endpoint: str, max_files: int, max_bytes: int) -> list[tuple[str, bytes]]:
    """Read the files directly under `s3://bucket/prefix`, a place of the user's: (name, bytes), sorted.

    Numbers and sizes are checked in the listing, before anything is downloaded.

    Raises:
        InputError: the URI is malformed, or what it names is missing or may not be read.
        TooLargeError: there are more than `max_files`, or one has more than `max_bytes`.
        UnavailableError: S3 does not answer.
    """
    source = S3Store(*_split(uri, "images"), endpoint=endpoint)
    found: list[tuple[str, int]] = []
    for name, size in source.files():
        if size > max_bytes:
            raise _too_large(name, max_bytes)
        found.append((name, size))
        if len(found) > max_files:
            raise TooLargeError(f"More than {max_files} files: give at most {max_files}.", param="images")
    return [(name, source.read(name, max_bytes=max_bytes)) for name, _ in sorted(found)]


def training_storage(settings: Settings) -> tuple[str, Any]:
    """Where Ray Train keeps the checkpoints of running jobs: a path, and pyarrow's file system for it (None: local)."""
    uri = open_store(settings).uri(TRAINING)
    if not uri.startswith("s3://"):
        return uri, None
    from pyarrow.fs import S3FileSystem

    if not settings.s3_endpoint:
        return uri.removeprefix("s3://"), S3FileSystem()
    parts = urlsplit(settings.s3_endpoint)
    filesystem = S3FileSystem(endpoint_override=parts.netloc, scheme=parts.scheme, force_virtual_addressing=False)
    return uri.removeprefix("s3://"), filesystem
