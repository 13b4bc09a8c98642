"""The commands of `palimpsest` that keep lineages and the installation in order."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.arguments import lineage_flag
from services.errors import InputError, PalimpsestError
from services.settings import Settings

if TYPE_CHECKING:
    from services.audit import Entry
    from services.retention import Retention

Run = Callable[[argparse.Namespace, Settings], None]
Command = Callable[[str, Run, str], argparse.ArgumentParser]

INSTALLATION = {"doctor", "backup", "restore", "migrate", "upgrade", "env"}
"""Commands that are about no lineage."""
BACKENDS = ("embedded", "postgres-s3")


def add_commands(command: Command) -> None:
    """Add the commands to the parser."""
    command("history", _history, "who moved which alias, when and why")
    undo = command("undo", _undo, "take back the last move of live")
    forget = command("forget", _forget, "go back to the last version that never knew a concept")
    forget.add_argument("name", help="the concept's name")
    forget.add_argument("--delete", action="store_true", help="delete every version that knows it, for good")
    delete = command("delete", _delete, "delete a version and its files, for good")
    delete.add_argument("version", type=int, help="number of a version")
    for moved in (undo, forget, delete):
        moved.add_argument("--reason", default="", help="why; kept in the history")
    gc = command("gc", _gc, "show abandoned branches and left-over files; --delete deletes them")
    gc.add_argument("--days", type=float, help="days that they were left alone (default: PALIMPSEST_RETENTION_DAYS)")
    gc.add_argument("--delete", action="store_true", help="delete what is shown, for good")

    doctor = command("doctor", _doctor, "what is wrong with the installation, and how to mend it")
    doctor.add_argument("--all", action="store_true", help="verify every version, not only those with an alias")
    for name, run, about in (
        ("backup", _backup, "copy the registry and all artifacts into a new folder"),
        ("restore", _restore, "copy a backup into an empty registry and store"),
    ):
        command(name, run, about).add_argument("folder", type=Path)
    migrate = command("migrate", _migrate, "move the registry and all artifacts to another backend")
    migrate.add_argument("--backend", choices=BACKENDS, required=True)
    command("upgrade", _upgrade, "give the registry's database the schema of the MLflow that is installed")
    command("env", _env, "the variables that other programs need to reach the backend, for a shell's eval")


def _history(options: argparse.Namespace, settings: Settings) -> None:
    for entry in _registry(settings).history(options.lineage):
        print(tell(entry), flush=True)


def tell(entry: "Entry") -> str:
    """An entry of the audit log in one line."""
    if entry.action == "delete":
        done = f"version {entry.before} deleted"
    elif entry.action == "overruled":
        done = f"a move of {entry.alias} to {entry.before} overruled, {entry.after or 'nothing'} stands"
    else:
        before, after = (number or "nothing" for number in (entry.before, entry.after))
        done = f"{entry.alias} {before} -> {after}"
    how = {"job": " by a job of", "person": " by", "serving": " by serving,", "found": ", found later, by"}[entry.via]
    return f"{entry.at[:19]}  {done}{how} {entry.actor}{f': {entry.reason}' if entry.reason else ''}"


def _undo(options: argparse.Namespace, settings: Settings) -> None:
    registry = _registry(settings)
    number = registry.undo(options.lineage, actor=_actor(settings), reason=options.reason)
    print(f"{options.lineage}: live is version {number}")


def _forget(options: argparse.Namespace, settings: Settings) -> None:
    registry, lineage, why = _registry(settings), options.lineage, options.reason
    forgotten = registry.forget(lineage, options.name, delete=options.delete, actor=_actor(settings), reason=why)
    if forgotten.live is None:
        print(f"{lineage}: no version is live; the next concept begins anew")
    else:
        print(f"{lineage}: live is version {forgotten.live}, which never knew <{options.name}>")
    if forgotten.resubmit:
        names = " ".join(f"<{name}>" for name in forgotten.resubmit)
        print(f"learned later and gone with it; submit their images again: {names}")
    if forgotten.deleted:
        print(f"deleted versions: {_numbers(forgotten.deleted)}")
    if forgotten.knowing:
        mend = f"`palimpsest forget {options.name} --delete{lineage_flag(lineage)}`"
        several = len(forgotten.knowing) > 1
        know, them = ("versions {} still know it", "them") if several else ("version {} still knows it", "it")
        print(f"{know.format(_numbers(forgotten.knowing))}; {mend} deletes {them}, for good")


def _delete(options: argparse.Namespace, settings: Settings) -> None:
    actor = _actor(settings)
    _registry(settings).delete(options.lineage, options.version, actor=actor, reason=options.reason)
    print(f"{options.lineage}: version {options.version} and its files are deleted")


def _gc(options: argparse.Namespace, settings: Settings) -> None:
    registry, lineage = _registry(settings), options.lineage
    days = settings.retention_days if options.days is None else options.days
    garbage = registry.garbage(lineage, days=days)
    if options.delete:
        garbage = registry.collect(lineage, garbage, days=days, actor=_actor(settings))
    does = "deleted" if options.delete else "would delete"
    print(f"{does} {len(garbage.versions)} abandoned versions: {_numbers(garbage.versions)}")
    print(f"{does} {len(garbage.unfinished)} half-deleted versions: {_numbers(garbage.unfinished)}")
    print(f"{does} files of {len(garbage.orphans)} runs that have no version")
    if garbage.vanished:
        does = "written down" if options.delete else "would write down"
        print(f"{does} that MLflow deleted versions {_numbers(garbage.vanished)}")


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"


def _doctor(options: argparse.Namespace, settings: Settings) -> None:
    from services.base_model import load_outline
    from services.doctor import Doctor

    faults = 0
    for finding in Doctor(settings, lambda: load_outline(settings.base).ref, thorough=options.all).examine():
        faults += finding.level == "fault"
        mend = f" -> {finding.mend}" if finding.mend else ""
        print(f"{finding.level:8}{finding.what}{mend}", flush=True)
    if faults:
        raise PalimpsestError("1 thing is wrong." if faults == 1 else f"{faults} things are wrong.")


def _backup(options: argparse.Namespace, settings: Settings) -> None:
    from services.transfer import backup

    with _backend(settings):
        copied = backup(settings, options.folder)
    print(f"{copied.objects} objects and {copied.rows} rows are in {options.folder}")


def _restore(options: argparse.Namespace, settings: Settings) -> None:
    from services.backends import remember
    from services.transfer import restore

    with _backend(settings):
        copied = restore(settings, options.folder)
    remember(settings)
    print(f"{copied.objects} objects and {copied.rows} rows were restored")


def _migrate(options: argparse.Namespace, settings: Settings) -> None:
    from services.backends import remember
    from services.transfer import migrate

    if options.backend == settings.backend:
        raise InputError(f"The lineages are in the backend `{settings.backend}` already.", param="backend")
    target = Settings(backend=options.backend)
    with _backend(settings), _backend(target):
        copied = migrate(settings, target)
    remember(target)
    print(f"{copied.objects} objects and {copied.rows} rows are in the backend `{target.backend}`; `palimpsest up`")
    print(f"the backend `{settings.backend}` still has its own; delete it when you have seen that all is well")


def _upgrade(_: argparse.Namespace, settings: Settings) -> None:
    from services.transfer import upgrade

    with _backend(settings):
        print("the schema was upgraded" if upgrade(settings) else "the schema is current")


def _env(_: argparse.Namespace, settings: Settings) -> None:
    import shlex

    from services.backends import backend_environment

    for name, value in (settings.environment() | backend_environment(settings)).items():
        print(f"export {name}={shlex.quote(value)}")


def _registry(settings: Settings) -> "Retention":
    from services.objects import open_store
    from services.retention import Retention

    return Retention(settings, open_store(settings), say=_say)


def _say(line: str) -> None:
    """Tell somebody who waits, beside what the command answers."""
    print(line, file=sys.stderr, flush=True)


def _actor(settings: Settings) -> str:
    from services.auth import actor
    from services.objects import open_store

    return actor(settings, open_store(settings))


@contextmanager
def _backend(settings: Settings) -> Iterator[None]:
    from services.local_stack import LocalStack

    with LocalStack(settings, print).backend_running():
        yield
