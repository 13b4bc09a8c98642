"""Secrets that the local stack makes for itself, once: each a file that nobody else may read."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.settings import Settings


def secrets_folder(settings: Settings) -> Path:
    """Where they are; made if need be."""
    folder = settings.home / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def kept_secret(path: Path, new: str) -> str:
    """What is in a file. If there is none, or nothing is in it, it is made with something new: whole, and only once."""
    with _alone(path.parent):
        if not path.exists() or not path.stat().st_size:
            _write(path, new)
        return path.read_text()


def _write(path: Path, text: str) -> None:
    """Write a file aside, and put it in place once it is on disk."""
    aside = path.with_name(f"{path.name}.new")
    with open(aside, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that makes a secret in a folder; one that dies makes room for the next."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
