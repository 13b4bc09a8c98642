"""Files that are written whole or not at all."""

from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file, in UTF-8 if it is text; whoever kills this leaves the old one, or none. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    partial.replace(path)
