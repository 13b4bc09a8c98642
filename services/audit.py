"""Who moved which alias of a lineage, when and why: an append-only log in the object store.

One immutable object an entry, `audit/<lineage>/<number>.json`, made by create-if-absent and numbered without gaps. Each
holds the SHA-256 of the one before it, so that an entry that was changed or taken away shows. An entry is written
before what it tells of is done: of two who act at once, the one whose entry comes second sees the other's.
"""

import getpass
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import takewhile
from typing import Literal

from services.errors import NotFoundError, RefusedError
from services.manifest import Digest, check_name, sha256
from services.objects import ObjectStore

AUDIT = "audit"
"""Folder of the store."""
UNKNOWN = "unknown"
"""Who did something that nobody here saw being done."""

_DIGITS = 12
Action = Literal["move", "delete", "overruled"]
Via = Literal["job", "person", "serving", "found"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that was done to a lineage.

    Attributes:
        number: 1, 2, 3, … in a lineage.
        at: when it was written down, UTC, by the writer's clock.
        action: `move` of an alias; `delete` of version `before`; `overruled`, a move to `before` in MLflow itself that
            somebody else's move overwrote before anybody saw it: `after` stands.
        alias: what moved; empty for a deletion.
        before, after: numbers of versions; None for no version.
        actor: a person, or `unknown`.
        reason: why, in the actor's words.
        via: `job` for a job's promotion, `person` for a command or request, `serving` for a canary that failed there,
            `found` for what was done in MLflow itself.
        undoes: number of the move that this one takes back.
        previous: digest of the entry before this one; empty for the first.
    """

    number: int
    at: str
    action: Action
    alias: str
    before: int | None
    after: int | None
    actor: str
    reason: str
    via: Via
    undoes: int | None = None
    previous: Digest = ""

    def to_bytes(self) -> bytes:
        """The object's bytes."""
        return json.dumps(asdict(self), indent=1).encode()

    def age(self) -> float:
        """Seconds since it was written, by two clocks that may differ; never negative."""
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds())


class AuditLog:
    """The log of all lineages of one store. Every method raises UnavailableError if the store does not answer."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def lineages(self) -> list[str]:
        """Names of the lineages that have a log, sorted."""
        return sorted({key.split("/")[1] for key in self._store.list(f"{AUDIT}/")})

    def entries(self, lineage: str) -> list[Entry]:
        """A lineage's log, oldest first.

        Raises:
            RefusedError: an entry is missing, or was changed.
        """
        found, digest = [], ""
        for number, key in enumerate(self._keys(lineage), 1):
            data = self._read(key)
            entry = _parse(data, key)
            if (entry.number, entry.previous) != (number, digest):
                raise RefusedError(f"The audit log of `{lineage}` was changed at or before {key}.")
            found.append(entry)
            digest = sha256(data)
        return found

    def tail(self, lineage: str) -> tuple[Entry, ...]:
        """The newest entry, alone in a tuple; empty before the first."""
        return tuple(self._newest(lineage, 1))

    def moves(self, lineage: str, alias: str) -> Iterator[Entry]:
        """Moves of one alias, newest first, read as they are asked for."""
        return (entry for entry in self._newest(lineage) if (entry.action, entry.alias) == ("move", alias))

    def last_move(self, lineage: str, alias: str) -> Entry | None:
        """The newest move of one alias."""
        return next(self.moves(lineage, alias), None)

    def since(self, lineage: str, moment: datetime) -> list[Entry]:
        """Entries that were written after a moment, newest first."""
        return list(takewhile(lambda entry: datetime.fromisoformat(entry.at) >= moment, self._newest(lineage)))

    def append(
        self,
        lineage: str,
        *,
        after: tuple[Entry, ...] | None = None,
        action: Action = "move",
        alias: str = "",
        before: int | None,
        to: int | None = None,
        actor: str,
        reason: str,
        via: Via,
        undoes: int | None = None,
    ) -> Entry | None:
        """Write the next entry.

        Args:
            lineage: whose log.
            after: `tail` as it was when the caller decided; None if it does not matter who else wrote meanwhile.
            to: the entry's `after`.
            actor: empty stands for the user that this process belongs to.
            action, alias, before, reason, via, undoes: as in `Entry`.

        Returns:
            The entry, or None if somebody wrote another one after `after`.
        """
        while True:
            last = self.tail(lineage) if after is None else after
            entry = Entry(
                number=last[0].number + 1 if last else 1,
                at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                action=action,
                alias=alias,
                before=before,
                after=to,
                actor=actor or current_user(),
                reason=reason,
                via=via,
                undoes=undoes,
                previous=sha256(last[0].to_bytes()) if last else "",
            )
            if self._store.create(_key(lineage, entry.number), entry.to_bytes()):
                return entry
            if after is not None:
                return None

    def _newest(self, lineage: str, count: int | None = None) -> Iterator[Entry]:
        for key in reversed(self._keys(lineage)[-count if count else None :]):
            yield _parse(self._read(key), key)

    def _keys(self, lineage: str) -> list[str]:
        return list(self._store.list(f"{AUDIT}/{check_name(lineage, 'lineage')}/"))

    def _read(self, key: str) -> bytes:
        try:
            return self._store.get(key)
        except NotFoundError:
            raise RefusedError(f"The audit log's {key} has just been taken away.") from None


def current_user() -> str:
    """Name of the user that this process belongs to; `unknown` where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return UNKNOWN


def _key(lineage: str, number: int) -> str:
    return f"{AUDIT}/{lineage}/{number:0{_DIGITS}d}.json"


def _parse(data: bytes, key: str) -> Entry:
    try:
        values = json.loads(data)
        entry = Entry(**{field.name: values[field.name] for field in fields(Entry)})
        whole = entry.to_bytes() == data and entry.age() >= 0
    except (ValueError, TypeError, LookupError):
        whole = False
    if not whole:
        raise RefusedError(f"The audit log's {key} is not an entry of it.")
    return entry
