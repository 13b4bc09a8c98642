"""What an object store is, and the one that is a directory. Open either kind with `objects.open_store`.

Keys are `/`-separated names. `put` and `create` are atomic: a reader sees all of an object or none of it.
`create` is the one primitive that coordination needs (`lease.py`): of many callers exactly one gets True.
"""

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from services.errors import InputError, NotFoundError, RefusedError, UnavailableError

_MAX_KEY_BYTES = 800  # S3 allows 1024 for the store's prefix and the key together
_MAX_NAME_BYTES = 255  # of one segment: the limit of file systems
_TEMP = ".tmp"
_TEMP_SECONDS = 3600  # a temporary file this old was left by a process that died
_RACES = 100  # a folder may vanish under a writer (a delete pruned it) so many times

_T = TypeVar("_T")


def check_key(key: str) -> str:
    r"""Return `key` if it is one in every kind of store.

    `%`, `#`, `?` and `\` are refused as well, so that a key reads the same inside a URI.

    Raises:
        InputError: it is not.
    """
    parts = key.split("/")
    sizes = [len(part.encode(errors="replace")) for part in parts]
    if (
        not key.isprintable()
        or any(character in key for character in "\\%#?")
        or any(part in {"", ".", ".."} for part in parts)
        or max(sizes) > _MAX_NAME_BYTES
        or sum(sizes) + len(sizes) > _MAX_KEY_BYTES
        or parts[0] == _TEMP
    ):
        raise InputError(
            f"{key[:80]!r} cannot be an object key: use printable names separated by single slashes, "
            r"without '.', '..', \, %, # and ?.",
            param="key",
        )
    return key


class ObjectStore(ABC):
    """Objects by key. Safe to use from many threads and processes at once.

    Every method raises InputError for a malformed key and UnavailableError when the store does not answer,
    is full or may not be written. `root` is the store's own URI, without a trailing slash.
    """

    def __init__(self, *roots: str) -> None:
        self.root = roots[0]
        self._roots = roots

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; True if this call made it."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Read an object.

        Raises:
            NotFoundError: there is none.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, sorted; end it with `/` to mean a folder."""

    @abstractmethod
    def older(self, prefix: str, moment: float) -> Iterator[str]:
        """As `list`, but only what was last written before a moment (seconds since 1970) of the store's own clock."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object; nothing happens if there is none."""

    def delete_prefix(self, prefix: str) -> int:
        """Delete a folder's objects and return how many there were.

        Raises:
            InputError: `prefix` does not end with `/`, so `runs/1` cannot take `runs/10` with it.
        """
        if not prefix.endswith("/"):
            raise InputError(f"{prefix[:80]!r} is not a folder: end it with a slash.", param="prefix")
        keys = tuple(self.list(prefix))
        for key in keys:
            self.delete(key)
        return len(keys)

    def uri(self, key: str) -> str:
        """Where the object is: an absolute path, or `s3://…`."""
        return f"{self.root}/{check_key(key)}"

    def key_of(self, uri: str) -> str:
        """The key of a URI: the inverse of `uri`, which also takes `file:///…` for a directory.

        Raises:
            RefusedError: the URI is not strictly inside this store, or is written in a roundabout way.
        """
        for root in self._roots:
            if uri.startswith(f"{root}/"):
                with suppress(InputError):
                    return check_key(uri.removeprefix(f"{root}/"))
        raise RefusedError(f"{uri[:200]!r} is not an object of the store {self.root}.")


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty, a folder that ends with a slash, or the start of a key."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


class DirectoryStore(ObjectStore):
    """Objects as files below one directory, which is made at the first write."""

    def __init__(self, root: Path) -> None:
        plain, self._real = Path(os.path.abspath(root)), Path(os.path.realpath(root))  # noqa: PTH100
        if self._real == Path("/"):
            raise InputError("The store cannot be the root directory.", param="store")
        # MLflow names a local artifact by path or by file URI, and does not resolve links as we do.
        paths = dict.fromkeys((plain, self._real))
        super().__init__(*(form for p in paths for form in dict.fromkeys((str(p), p.as_uri(), f"file://{p}"))))
        self._sweep()

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        path = self._path(key)
        with self._errors(key), self._written(data) as temporary:
            _place(path, lambda: temporary.replace(path))

    def create(self, key: str, data: bytes) -> bool:
        """See `ObjectStore.create`."""
        path = self._path(key)

        def link() -> bool:
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
                return True
            if path.is_dir():
                raise IsADirectoryError
            return False

        with self._errors(key), self._written(data) as temporary:
            return _place(path, link)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        path = self._path(key)
        with self._errors(key):
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise NotFoundError(f"There is no object {key} in {self.root}.") from None

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        path = self._path(key)
        with self._errors(key):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `ObjectStore.list`."""
        folder = check_prefix(prefix).rpartition("/")[0]
        start = self._path(folder) if folder else self._real
        with self._errors(prefix):
            keys = [path.relative_to(self._real).as_posix() for path in _files(start)]
        return iter(sorted(key for key in keys if key.startswith(prefix) and not key.startswith(f"{_TEMP}/")))

    def older(self, prefix: str, moment: float) -> Iterator[str]:
        """See `ObjectStore.older`."""
        found = []
        with self._errors(prefix):
            for key in self.list(prefix):
                with suppress(FileNotFoundError):
                    if self._path(key).stat().st_mtime < moment:
                        found.append(key)
        return iter(found)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        path = self._path(key)
        with self._errors(key):
            if not path.is_file():
                return
            path.unlink(missing_ok=True)
        for parent in path.relative_to(self._real).parents:
            try:
                (self._real / parent).rmdir()
            except OSError:
                return  # not empty

    def _path(self, key: str) -> Path:
        path = self._real / check_key(key)
        if path.is_symlink() or os.path.realpath(path) != str(path):
            raise RefusedError(f"{key} in {self.root} passes through a symbolic link, which is not followed.")
        return path

    @contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        """A temporary file on the same file system, complete and on disk; gone afterwards."""
        self._real.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._real / _TEMP).mkdir(exist_ok=True)
        temporary = self._real / _TEMP / uuid4().hex
        try:
            with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what killed writers left: it may be somebody's picture."""
        with self._errors(_TEMP):
            for path in (self._real / _TEMP).glob("*"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _TEMP_SECONDS:
                        path.unlink()

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise InputError(f"{key} clashes with an object or folder of that name.", param="key") from error
        except OSError as error:
            raise UnavailableError(
                f"The store {self.root} failed ({error.strerror}): check free space and permissions."
            ) from error


def _place(path: Path, act: Callable[[], _T]) -> _T:
    """Do `act` in a folder that exists, and make its outcome durable."""
    for _ in range(_RACES):
        with suppress(FileNotFoundError):  # a delete pruned the folder: make it again
            _make_folder(path.parent)
            result = act()
            _sync(path.parent)
            return result
    raise UnavailableError(f"The folder of {path.name} keeps vanishing: is somebody else clearing the store?")


def _make_folder(folder: Path) -> None:
    """Make `folder`, though others make and prune it at the same time.

    `Path.mkdir(exist_ok=True)` raises FileExistsError for a folder that was pruned before it could look again.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if any(place.is_file() for place in (folder, *folder.parents)):
            raise
        raise FileNotFoundError(folder) from None


def _sync(folder: Path) -> None:
    with suppress(FileNotFoundError):  # placed, and already deleted again with its folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _files(start: Path) -> Iterator[Path]:
    """Regular files below `start`; an unreadable folder is an error, a vanished one is not."""

    def report(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, _, names in os.walk(start, onerror=report):
        for name in names:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
