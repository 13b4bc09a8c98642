"""Secrets that the local stack makes for itself, once: each a file that nobody else may read."""

from pathlib import Path

from services.settings import Settings


def secrets_folder(settings: Settings) -> Path:
    """Where they are; made if need be."""
    folder = settings.home / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def kept_secret(path: Path, new: str) -> str:
    """What is in a file, which is made with something new if there is none."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(new)
    return path.read_text()
