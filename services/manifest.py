"""What one adapter version says of itself: `manifest.json`.

`Content` is everything that decides what the version draws and how it may be trained on; its SHA-256 is the version's
digest. It names the other files by their own SHA-256, so the digest (kept as a registry tag) vouches for every byte.
`Provenance` tells where the version came from and is not part of the digest.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.errors import InputError, RefusedError

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
NAME_RULE = "a lower-case letter, then at most 31 lower-case letters, digits or hyphens"
RESERVED = {"base"}
MAX_RANK = 1024

ADAPTER_FILE = "adapter.safetensors"
TOKENS_FILE = "tokens.safetensors"
STATE_FILE = "training_state.safetensors"
MANIFEST_FILE = "manifest.json"
Digest = str


def check_name(name: str, param: str) -> str:
    """Return `name` if lineages and concepts may be called so, else raise `InputError` naming `param`."""
    if not NAME.fullmatch(name) or name in RESERVED:
        why = f"`{name}` is reserved" if name in RESERVED else f"{name!r} is not a name"
        raise InputError(f"{param}: {why}; use {NAME_RULE}.", param=param)
    return name


def check_noun(noun: str) -> str:
    """Return a class noun without spaces around it, else raise `InputError`; empty means there is none.

    A noun that named a concept would make the pretrained concept c^0 that concept.
    """
    noun = noun.strip()
    if any(letter in "<>" or not letter.isprintable() for letter in noun):
        raise InputError("noun: give plain words such as mug or dog, without < and >.", param="noun")
    return noun


def sha256(data: bytes) -> Digest:
    """`sha256:<hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def sha256_of_files(folder: Path, paths: Iterable[Path] | None = None) -> str:
    """SHA-256, in hexadecimal, over relative names and contents of files of a folder: these, in this order, or all."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()) if paths is None else paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def canonical(value: Any) -> bytes:
    """The one JSON spelling that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class _Strict(BaseModel):
    # A metric may be NaN; JSON has no word for it but a string, and null would not be read back.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class BaseRef(_Strict):
    """The base model that a version belongs to; `revision` decides, `id` is for people."""

    id: str
    revision: Digest


class Concept(_Strict):
    """One learned concept: written `<name>` in prompts, `vectors` token embeddings long."""

    name: str = Field(pattern=f"^{NAME.pattern}$")
    noun: str
    vectors: int = Field(1, ge=1, le=16)


class FileRef(_Strict):
    """One file beside the manifest."""

    sha256: Digest
    bytes: int = Field(ge=0)


class Content(_Strict):
    """What the digest covers."""

    schema_version: Literal[1] = 1
    lineage: str
    base: BaseRef
    rank: int = Field(ge=1, le=MAX_RANK)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    concepts: tuple[Concept, ...]
    files: dict[str, FileRef]

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical JSON."""
        return sha256(canonical(self.model_dump(mode="json")))


class Provenance(_Strict):
    """Where a version came from."""

    parent: int | None
    parent_digest: Digest | None
    method: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    run_id: str
    created: str


class Manifest(_Strict):
    """`manifest.json`."""

    digest: Digest
    content: Content
    provenance: Provenance

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @staticmethod
    def from_bytes(data: bytes) -> "Manifest":
        """Parse and check the digest.

        Raises:
            RefusedError: not a manifest of a schema this program knows, or its content was changed.
        """
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, fault["loc"])) or MANIFEST_FILE
            newer = ": a newer Palimpsest may know it" if where == "content.schema_version" else ""
            raise RefusedError(f"The version's manifest is not valid ({where}: {fault['msg']}){newer}.") from error
        if manifest.content.digest != manifest.digest:
            raise RefusedError("The version's manifest was changed: its content does not match its digest.")
        return manifest
