"""The object store in a directory: links, leftovers of killed writers, vanishing folders, a full disk."""

import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.errors import InputError, RefusedError, UnavailableError
from services.objects import open_store_at


def test_a_directory_is_found_by_path_and_by_file_uri(tmp_path: Path) -> None:
    real = tmp_path / "re al"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    store = open_store_at(f"file://{link}")
    store.put("a/b", b"x")
    assert store.uri("a/b") == f"{link}/a/b"
    for uri in (
        f"{link}/a/b",
        f"{real}/a/b",
        f"file://{link}/a/b",
        f"file://{real}/a/b",
        (real / "a").as_uri() + "/b",
    ):
        assert store.key_of(uri) == "a/b"
    for uri in (f"file://localhost{link}/a/b", f"file:{link}/a/b", f"file:///{link}/a/b"):
        with pytest.raises(RefusedError):
            store.key_of(uri)


def test_opening_and_reading_make_nothing(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path / "store"))
    assert list(store.list("a/")) == []
    assert not store.exists("a")
    assert not list(tmp_path.iterdir())


def test_empty_folders_are_pruned_and_nothing_temporary_stays(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path / "store"))
    store.put("a/b/c/d", b"")
    assert store.create("a/e", b"")
    assert not store.create("a/e", b"")
    store.delete("a/b/c/d")
    assert sorted(p.name for p in (tmp_path / "store").rglob("*")) == [".tmp", "a", "e"]


def test_what_a_killed_writer_left_is_not_listed_and_is_swept(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path))
    store.put("a", b"")
    old, new = tmp_path / ".tmp" / "old", tmp_path / ".tmp" / "new"
    for path in (old, new):
        path.write_bytes(b"half a picture")
    os.utime(old, (time.time() - 7200,) * 2)
    assert list(store.list()) == ["a"]
    open_store_at(str(tmp_path))
    assert new.exists()
    assert not old.exists()


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = open_store_at(str(tmp_path / "store"))
    store.put("a", b"")
    (tmp_path / "store" / "folder").symlink_to(outside)
    (tmp_path / "store" / "file").symlink_to(outside / "secret")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store" / "loop")
    for key in ("folder/secret", "file", "loop", "folder/new"):
        for act in (store.get, store.exists, store.delete):
            with pytest.raises(RefusedError, match="symbolic link"):
                act(key)
        for write in (store.put, store.create):
            with pytest.raises(RefusedError):
                write(key, b"")
    with pytest.raises(RefusedError):
        store.list("folder/")
    assert list(store.list()) == ["a"]
    assert [p.name for p in outside.iterdir()] == ["secret"]


def test_an_object_cannot_be_a_folder_too(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path))
    store.put("a/b", b"")
    for write in (store.put, store.create):
        for key in ("a", "a/b/c"):
            with pytest.raises(InputError, match="clashes"):
                write(key, b"")
    assert list(store.list()) == ["a/b"]


def test_writers_survive_folders_that_vanish(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path))

    def come_and_go(name: int) -> None:
        for _ in range(100):
            store.put(f"deep/er/{name}", b"x")
            assert store.get(f"deep/er/{name}") == b"x"
            store.delete(f"deep/er/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert list(store.list()) == []


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """The kernel refuses larger files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_leaves_the_old_object(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path))
    store.put("a", b"old")
    with disk_of(100_000):
        for write in (store.put, store.create):
            with pytest.raises(UnavailableError, match="check free space"):
                write("a", bytes(200_000))
    assert store.get("a") == b"old"
    assert not list((tmp_path / ".tmp").iterdir())
    store.put("a", bytes(200_000))


def test_a_place_that_cannot_be_written_is_reported() -> None:
    with pytest.raises(UnavailableError, match="permissions"):
        open_store_at("/proc/palimpsest").put("a", b"")
