"""What tells one folder from another: a digest of everything in it."""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """SHA-256 over the relative names and contents of a folder's files, in hexadecimal."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
