"""MLflow's database, copied from one server to another, SQLite or PostgreSQL. MLflow must not run on either.

Ids, version numbers, aliases, tags and times stay what they are. Only the addresses of artifacts change, from the old
store's root to the new one's. Both databases must have the schema of the MLflow that is installed, which
`upgrade_database` gives them. What else is in them is left alone: a server behind a password keeps its people there.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, MetaData, Table, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from services.errors import ConflictError, NotFoundError, RefusedError, UnavailableError

_ADDRESSES = {"artifact_location", "artifact_uri", "source", "storage_location"}
"""Columns that hold an artifact's address."""
_OWN = {"webhooks", "webhook_events"}
"""Tables that are an installation's own: addresses, and secrets encrypted with its key."""
_ROWS = 500  # read and written at once


def upgrade_database(url: str) -> None:
    """Give a database, or an empty one, the schema of the MLflow that is installed. Make a backup first.

    Raises:
        UnavailableError: the database does not answer.
    """
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db

    with _open(url) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow's own models and migrations call is not ours to change
        (_initialize_tables if _is_empty(engine) else _upgrade_db)(engine)


def schema_state(url: str) -> str:
    """`empty`, `old` or `current`: the schema of a database against that of the MLflow that is installed.

    Raises:
        NotFoundError: there is no such SQLite file.
        UnavailableError: the database does not answer.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version

    path = _sqlite_path(url)
    if path and not path.is_file():
        raise NotFoundError(f"There is no database {path}.")
    with _open(url) as engine:
        if _is_empty(engine):
            return "empty"
        return "current" if _get_schema_version(engine) == _get_latest_schema_revision() else "old"


def check_vacant(url: str) -> None:
    """Look whether a database can be copied into; nothing is changed.

    Raises:
        ConflictError: it has runs or lineages.
        UnavailableError: it does not answer.
    """
    path = _sqlite_path(url)
    if path and not path.is_file():
        return
    with _open(url) as engine:
        if not _is_empty(engine):
            with engine.connect() as reading:
                _check_vacant(reading, _tables(engine))


def copy_database(source: str, target: str, *, address: Callable[[str], str]) -> int:
    """Copy everything but webhooks into an empty database, and return how many rows there were.

    Args:
        source: SQLAlchemy URL of a database with the current schema; read in one transaction.
        target: URL of another, without lineages or runs; in the end it has all rows or none of them.
        address: maps an artifact's address to the new one.

    Raises:
        ConflictError: the target has runs or lineages already.
        RefusedError: the source's schema is not current: `palimpsest upgrade` first.
        UnavailableError: one of them does not answer.
    """
    if schema_state(source) != "current":
        raise RefusedError("The registry's database is of another MLflow: `palimpsest upgrade` first.")
    _make_file(target)
    upgrade_database(target)
    with _open(source) as old, _open(target) as new, _snapshot(old) as reading, new.begin() as writing:
        tables = _tables(new)
        _check_vacant(writing, tables)
        theirs = {table.name: table for table in _tables(old)}
        for table in reversed(tables):
            writing.execute(table.delete())
        copied = [table for table in tables if table.name not in _OWN]
        rows = sum(_copy_table(reading, theirs[table.name], writing, table, address) for table in copied)
        if new.dialect.name == "postgresql":
            _advance_sequences(writing, tables)
    return rows


def _copy_table(
    reading: Connection, source: Table, writing: Connection, target: Table, address: Callable[[str], str]
) -> int:
    count = 0
    for batch in reading.execute(select(source)).mappings().partitions(_ROWS):
        writing.execute(target.insert(), [_moved(row, address) for row in batch])
        count += len(batch)
    return count


def _moved(row: Mapping[Any, Any], address: Callable[[str], str]) -> dict[str, Any]:
    return {
        str(name): address(value) if name in _ADDRESSES and isinstance(value, str) else value
        for name, value in row.items()
    }


def _is_empty(engine: Engine) -> bool:
    """Whether no registry was ever made in it."""
    return "alembic_version" not in sqlalchemy.inspect(engine).get_table_names()


def _tables(engine: Engine) -> list[Table]:
    """The registry's tables in an order in which rows find what they refer to."""
    from mlflow.store.db.utils import Base

    metadata = MetaData()
    metadata.reflect(engine, only=lambda name, _: name in Base.metadata.tables)
    return metadata.sorted_tables


def _check_vacant(connection: Connection, tables: list[Table]) -> None:
    for table in tables:
        if (
            table.name in {"runs", "registered_models"}
            and connection.execute(select(func.count()).select_from(table)).scalar()
        ):
            raise ConflictError("The target's database has runs or lineages already; give an empty one.")


def _advance_sequences(connection: Connection, tables: list[Table]) -> None:
    """PostgreSQL numbers new rows from a sequence that does not see the rows we wrote."""
    for table in tables:
        for column in table.primary_key:
            name = {"table": table.name, "column": column.name}
            sequence = connection.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), name).scalar()
            if sequence:
                highest = connection.execute(select(func.max(column))).scalar()
                if highest:
                    connection.execute(
                        text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest}
                    )


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment of the database."""
    level = "REPEATABLE READ" if engine.dialect.name == "postgresql" else "SERIALIZABLE"
    with engine.connect().execution_options(isolation_level=level) as connection, connection.begin():
        yield connection


@contextmanager
def _open(url: str) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(url)
    try:
        yield engine
    except SQLAlchemyError as error:
        place = engine.url.render_as_string(hide_password=True)
        raise UnavailableError(f"The database {place} failed ({type(error).__name__}): see that it runs.") from error
    finally:
        engine.dispose()


def _sqlite_path(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _make_file(url: str) -> None:
    path = _sqlite_path(url)
    if path:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
