"""Everything that a registry and its store hold, copied elsewhere: backup, restore, and the move to another backend.

Copied are MLflow's database, and of the store what is meant to last: artifacts, audit logs, and who may what. Concept
images, leases and the checkpoints of running jobs are never copied. A backup is a folder with a SQLite database and a
directory store, and so can be served as it is: `PALIMPSEST_HOME=<backup> palimpsest up`.

Nothing may write meanwhile, so MLflow must be down; the database is copied after the objects where it makes them
visible, and what arrived is compared with what was sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.audit import AUDIT
from services.auth import OWNERS, PEOPLE
from services.errors import ConflictError, RefusedError, UnavailableError
from services.local_stack import answers
from services.objects import ObjectStore, open_store
from services.registry_database import check_vacant, copy_database, schema_state, upgrade_database
from services.runs import ARTIFACTS
from services.settings import Settings

LASTING = (f"{ARTIFACTS}/", f"{AUDIT}/", f"{PEOPLE}/", f"{OWNERS}/")
"""Folders of the store that are copied."""


@dataclass(frozen=True)
class State:
    """A registry's database and its store."""

    database: str
    store: ObjectStore

    @staticmethod
    def of(settings: Settings) -> "State":
        """What the settings name."""
        return State(settings.database_url, open_store(settings))

    @staticmethod
    def in_folder(folder: Path) -> "State":
        """A backup."""
        return State.of(Settings(home=folder, backend="embedded", database="", store="", s3_endpoint=""))


@dataclass(frozen=True)
class Copied:
    """How much there was."""

    rows: int
    objects: int


def copy_state(source: State, target: State) -> Copied:
    """Copy a registry and its store into empty ones; what was killed may be begun again.

    Raises:
        ConflictError: there are lineages in the target, or objects in these folders that the source has not.
        RefusedError: the source's database is not of the schema of the MLflow that is installed.
        UnavailableError: a database or a store does not answer, or gave back other bytes than were written.
    """
    if schema_state(source.database) != "current":
        raise RefusedError("The registry's database is of another MLflow: `palimpsest upgrade` first.")
    check_vacant(target.database)  # before an object that was deleted there comes back
    for folder in LASTING:
        _check_nothing_else(source.store, target.store, folder)
    objects = sum(_copy_folder(source.store, target.store, folder) for folder in LASTING)
    rows = copy_database(source.database, target.database, address=_moved(source.store, target.store))
    return Copied(rows, objects)


def backup(settings: Settings, folder: Path) -> Copied:
    """Copy what the settings name into a new folder.

    Raises:
        ConflictError: MLflow runs, or the folder is not empty. Otherwise as `copy_state`.
    """
    _check_down(settings)
    if folder.exists() and any(folder.iterdir()):
        raise ConflictError(f"{folder} is not empty; give a new folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return copy_state(State.of(settings), State.in_folder(folder.absolute()))


def restore(settings: Settings, folder: Path) -> Copied:
    """Copy a backup into the empty registry and store that the settings name.

    Raises:
        ConflictError: MLflow runs, or there are lineages already. Otherwise as `copy_state`.
    """
    _check_down(settings)
    return copy_state(State.in_folder(folder.absolute()), State.of(settings))


def migrate(source: Settings, target: Settings) -> Copied:
    """Copy what one backend holds into another one. Raises as `restore`."""
    _check_down(source)
    return copy_state(State.of(source), State.of(target))


def upgrade(settings: Settings) -> bool:
    """Give the registry's database the schema of the MLflow that is installed; whether that changed anything.

    Raises:
        ConflictError: MLflow runs.
        NotFoundError: there is no registry yet.
        UnavailableError: the database does not answer.
    """
    _check_down(settings)
    if schema_state(settings.database_url) != "old":
        return False
    upgrade_database(settings.database_url)
    return True


def _check_down(settings: Settings) -> None:
    if answers(f"{settings.mlflow}/health"):
        raise ConflictError(f"MLflow runs at {settings.mlflow}: stop it first (`palimpsest down`).")


def _check_nothing_else(source: ObjectStore, target: ObjectStore, folder: str) -> None:
    """Refuse what would live on beside the copy: somebody's token or right, entries of another history."""
    if others := sorted(set(target.list(folder)) - set(source.list(folder))):
        raise ConflictError(
            f"{target.root} has {len(others)} objects that are not of this copy, such as {others[0]}; "
            "give an empty store."
        )


def _copy_folder(source: ObjectStore, target: ObjectStore, folder: str) -> int:
    count = 0
    for key in source.list(folder):
        data = source.get(key)
        made = target.create(key, data)
        if target.get(key) != data:
            if not made:
                raise ConflictError(f"There is another {key} in {target.root} already; give an empty store.")
            raise UnavailableError(f"The store {target.root} gave back other bytes of {key} than were written.")
        count += 1
    return count


def _moved(source: ObjectStore, target: ObjectStore) -> Callable[[str], str]:
    """The address of an artifact in another store; one that was not in ours stays as it is, and is refused on."""

    def moved(address: str) -> str:
        try:
            return target.uri(source.key_of(address))
        except RefusedError:
            return address

    return moved
