"""The append-only log, on a real directory and a real S3 server."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.audit import AuditLog, Entry
from services.errors import InputError, RefusedError
from services.objects import ObjectStore


def _write(log: AuditLog, reason: str, *, after: tuple[Entry, ...] | None = None) -> Entry | None:
    return log.append("pets", after=after, alias="live", before=1, to=2, actor="ada", reason=reason, via="person")


def test_entries_are_numbered_and_chained(store: ObjectStore) -> None:
    log = AuditLog(store)
    assert (log.entries("pets"), log.tail("pets"), log.last_move("pets", "live")) == ([], (), None)
    for reason in ("first", "second", "third"):
        _write(log, reason)
    log.append("pets", action="delete", before=4, actor="", reason="", via="person")
    entries = log.entries("pets")
    assert [(entry.number, entry.reason) for entry in entries] == [(1, "first"), (2, "second"), (3, "third"), (4, "")]
    assert (entries[0].actor, entries[0].previous) == ("ada", "")
    assert entries[3].actor, "whoever runs this"
    assert log.tail("pets") == (entries[3],)
    assert log.last_move("pets", "live") == entries[2]
    assert log.lineages() == ["pets"]
    assert log.entries("other") == []


def test_of_many_at_once_each_gets_a_number_of_its_own(store: ObjectStore) -> None:
    log = AuditLog(store)
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: _write(log, str(number)), range(8)))
    assert sorted(entry.number for entry in written if entry) == list(range(1, 9))
    assert sorted(entry.reason for entry in log.entries("pets")) == sorted(map(str, range(8)))


def test_of_many_who_saw_the_same_end_one_writes(store: ObjectStore) -> None:
    log = AuditLog(store)
    _write(log, "before")
    tail = log.tail("pets")
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: _write(log, str(number), after=tail), range(8)))
    assert len([entry for entry in written if entry]) == 1
    assert len(log.entries("pets")) == 2


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_entry_that_was_changed_or_taken_away_shows(store: ObjectStore, number: int) -> None:
    log = AuditLog(store)
    for reason in ("first", "second", "third", "fourth"):
        _write(log, reason)
    key = f"audit/pets/{number:012d}.json"
    whole = store.get(key)
    store.put(key, whole.replace(b'"ada"', b'"eve"'))
    with pytest.raises(RefusedError, match="was changed"):
        log.entries("pets")
    store.put(key, whole)
    assert len(log.entries("pets")) == 4
    store.delete(key)
    with pytest.raises(RefusedError, match="was changed"):
        log.entries("pets")


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[]", b"null", b"\xff", b'{"number": 1, "at": "never"}'])
def test_garbage_is_no_entry(store: ObjectStore, garbage: bytes) -> None:
    store.put("audit/pets/000000000001.json", garbage)
    for read in (AuditLog(store).entries, AuditLog(store).tail):
        with pytest.raises(RefusedError, match="is not an entry"):
            read("pets")


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b"])
def test_names_are_checked(store: ObjectStore, name: str) -> None:
    with pytest.raises(InputError):
        AuditLog(store).entries(name)
