"""What may be forgotten: concepts, versions, abandoned branches, and the files of versions that never were.

A version is deleted in steps that can be taken again after a kill: the version is marked (from then on nobody sees it),
the deletion is written into the audit log, its run's artifacts are deleted and the folder is listed to see that they
are gone, then MLflow deletes the version and its run. A version that is live, or that others were learned on, is
not deleted; whoever makes it live at the same moment is told (`moves.py` looks at the mark after its move, this file at
the aliases after the mark: one of the two sees the other).
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from services.audit import UNKNOWN, Entry
from services.catalogue import CANDIDATE, DELETED_TAG, LIVE
from services.errors import ConflictError, InputError, NotFoundError, UnavailableError
from services.intake import Intake
from services.lease import Lease, lease
from services.lineage import Registry, VersionInfo
from services.manifest import check_name
from services.moves import Why
from services.objects import ObjectStore, checkpoint_folder
from services.runs import ARTIFACTS, experiment_of
from services.settings import Settings
from services.versions import DELETED_MARK, TAG, concepts_of

VANISHED = "deleted in MLflow, not through Palimpsest"
"""Reason in the log of a deletion that nobody gave a reason for."""

_log = logging.getLogger("palimpsest.retention")
_TOLD = 400  # deleted versions that a tag names, the newest: MLflow's column in PostgreSQL takes 5000 characters


@dataclass(frozen=True)
class Forgotten:
    """What forgetting a concept left.

    Attributes:
        live: the version that is live now: the last on its branch that never knew the concept; None: there is none, so
            the next concept begins anew.
        resubmit: concepts learned after it, which the live version does not know: of the branch that was live, and of
            all deleted versions.
        knowing: versions that still know the concept.
        deleted: versions that were deleted.
    """

    live: int | None
    resubmit: tuple[str, ...]
    knowing: tuple[int, ...]
    deleted: tuple[int, ...]


@dataclass(frozen=True)
class Garbage:
    """What of a lineage may be deleted.

    Attributes:
        versions: of abandoned branches, newest first.
        unfinished: versions whose deletion was interrupted.
        orphans: runs that wrote files and have no version.
        vanished: versions that were deleted in MLflow itself, of which the log and the replicas do not know yet.
    """

    versions: tuple[int, ...]
    unfinished: tuple[int, ...]
    orphans: tuple[str, ...]
    vanished: tuple[int, ...] = ()


class Retention(Registry):
    """A registry that can also delete. Raises as `Registry` does, and BusyError while a job learns in the lineage.

    Args:
        settings, store: as of `Registry`.
        say: called with a line when it must be waited whether a writer still lives.
    """

    def __init__(self, settings: Settings, store: ObjectStore, say: Callable[[str], object] = _log.info) -> None:
        super().__init__(settings, store)
        self._ttl, self._say = settings.lease_seconds, say
        self._intake = Intake(store, settings)

    def forget(
        self, lineage: str, concept: str, *, delete: bool = False, actor: str = "", reason: str = ""
    ) -> Forgotten:
        """Go back to the last version of the live branch that never knew a concept.

        What was learned after the concept was learned on weights that knew it, so it cannot be kept; the next concept
        grows a new branch.

        Args:
            lineage: name.
            concept: name.
            delete: delete every version that knows the concept, on all branches; there is no way back. May be repeated
                until it has succeeded.
            actor, reason: for the audit log.

        Raises:
            NotFoundError: no such lineage, or no version of it knows the concept.
            UnavailableError: some files are still there: try again.
        """
        why = Why(actor=actor, reason=reason or f"forget <{concept}>")
        if not delete:
            return self._forget(lineage, concept, why)
        with self._writing(lineage) as writer:  # so that a job that learns there refuses all of it
            return self._forget(lineage, concept, why, writer)

    def _forget(self, lineage: str, concept: str, why: Why, writer: Lease | None = None) -> Forgotten:
        """With a writer, delete too."""
        versions = {version.number: version for version in self.versions(lineage)}
        knowing = {number: version.concepts for number, version in versions.items() if concept in version.concepts}
        unfinished = self._unfinished(lineage) if writer else {}
        begun = {number: known for number, known in unfinished.items() if concept in known}
        if not knowing and not begun:
            raise NotFoundError(f"No version of `{lineage}` knows <{check_name(concept, 'name')}>.", param="name")
        live = versions.get(self.aliases(lineage).get(LIVE, 0))
        clean = live
        while clean is not None and concept in clean.concepts:
            clean = versions.get(clean.parent or 0)
        for number in knowing:
            self.end_canary(lineage, number, actor=why.actor, reason=why.reason)
        if live is not None and clean is None:
            self.clear_live(lineage, actor=why.actor, reason=why.reason)
        elif live is not None and clean is not None and clean is not live:
            self.set_live(lineage, clean.number, actor=why.actor, reason=why.reason)
        doomed = knowing | begun if writer else {}
        kept = {*(clean.concepts if clean else ()), concept}
        lost = (name for known in (live.concepts if live else (), *doomed.values()) for name in known)
        resubmit = tuple(dict.fromkeys(name for name in lost if name not in kept))
        deleted = self._delete_all(lineage, sorted(doomed, reverse=True), why, writer) if writer else ()
        left = tuple(number for number in knowing if number not in deleted)
        return Forgotten(clean.number if clean else None, resubmit, left, deleted)

    def delete(self, lineage: str, number: int, *, actor: str = "", reason: str = "") -> None:
        """Delete a version, its files and its run; a deletion that was interrupted is finished.

        Raises:
            NotFoundError: no such lineage or version.
            ConflictError: it is live or has a share of the requests, or other versions were learned on it.
            UnavailableError: some of its files are still there: try again.
        """
        with self._writing(lineage) as writer:
            self._delete(lineage, number, Why(actor=actor, reason=reason), writer)

    def garbage(self, lineage: str, *, days: float) -> Garbage:
        """What may be deleted: branches that nothing points at and nothing happened to for so many days.

        A version that has an alias, was made or moved to or from since then, or has such a descendant is kept. Where
        the first job was killed before it registered anything, the lineage is its runs alone.

        Raises:
            NotFoundError: no such lineage, and no runs of one.
            InputError: a negative number of days.
        """
        if days < 0:
            raise InputError("days: give 0 or more.", param="days")
        since = datetime.now(UTC) - timedelta(days=days)
        if not self._registered(lineage):
            return Garbage((), (), self._orphans(lineage, since))
        history = self.history(lineage)
        return Garbage(
            find_abandoned(self.versions(lineage), history, since),
            tuple(self._unfinished(lineage)),
            self._orphans(lineage, since),
            self._vanished(lineage, history),
        )

    def collect(self, lineage: str, garbage: Garbage, *, days: float, actor: str = "") -> Garbage:
        """Delete garbage, as far as it still is; returns what was deleted.

        Raises:
            NotFoundError: no such lineage, and no runs of one.
            UnavailableError: some files are still there: try again.
        """
        why = Why(actor=actor, reason=f"abandoned for {days:g} days")
        with self._writing(lineage) as writer:
            now = self.garbage(lineage, days=days)
            versions = tuple(number for number in now.versions if number in garbage.versions)
            for number in (*now.unfinished, *versions):
                self._delete(lineage, number, why, writer)
            orphans = tuple(run_id for run_id in now.orphans if run_id in garbage.orphans)
            self._empty_runs(orphans, writer)
            for number in now.vanished:
                self._note_deleted(lineage, number)  # first: what is in the log is not found again
                self._log_deletion(lineage, number, Why(actor=UNKNOWN, reason=VANISHED, via="found"))
            self._store.delete_prefix(checkpoint_folder(lineage))  # of a job that was killed
        return Garbage(versions, now.unfinished, orphans, now.vanished)

    @contextmanager
    def _writing(self, lineage: str) -> Iterator[Lease]:
        """Be the lineage's one writer: nothing is deleted below a job that lives, and a dead one is succeeded."""
        self._registered(lineage)
        holder = f"{socket.gethostname()}:{os.getpid()} deleting"
        with lease(self._store, lineage, ttl=self._ttl, holder=holder, timeout=0, on_wait=self._tell_wait) as writer:
            yield writer

    def _tell_wait(self, line: str) -> None:
        self._say(
            f"{line} Waiting to see whether it lives: {self._ttl:g} s, ten minutes for a job that has yet to begin."
        )

    def _registered(self, lineage: str) -> bool:
        """Whether MLflow has the lineage's model, and not only an experiment with its runs.

        Raises:
            NotFoundError: it has neither.
        """
        try:
            self.aliases(lineage)
        except NotFoundError:
            if self._runs_of(lineage) is None:
                raise
            return False
        return True

    def _delete_all(self, lineage: str, numbers: Sequence[int], why: Why, writer: Lease) -> tuple[int, ...]:
        for number in numbers:
            self._delete(lineage, number, why, writer)
        self._empty_runs(self._orphans(lineage, datetime.now(UTC)), writer)  # they may have drawn it
        self._store.delete_prefix(checkpoint_folder(lineage))  # of a job that was killed
        return tuple(numbers)

    def _empty_runs(self, run_ids: Sequence[str], writer: Lease) -> None:
        """Delete the files of runs that made no version, pictures too; the runs stay as a record."""
        for run_id in run_ids:
            writer.check()
            self._empty(self._folder(self._run(run_id)))

    def _delete(self, lineage: str, number: int, why: Why, writer: Lease) -> None:
        interrupted = number in self._unfinished(lineage)
        if not interrupted:
            self._condemn(lineage, number, why)
        if not interrupted or number not in _deleted(self._audit.since(lineage, datetime.min.replace(tzinfo=UTC))):
            self._log_deletion(lineage, number, why)
        writer.check()
        entity = self._server.ask(self._client.get_model_version, lineage, str(number))
        own = self._owns_run(lineage, entity)
        if own:
            with suppress(NotFoundError):  # the run was deleted for good in MLflow
                self._empty(self._folder(self._run(entity.run_id)))
        if held := entity.tags.get(f"{TAG}intake"):  # images that a refused version left for another try
            with suppress(InputError):  # somebody else wrote that tag
                self._intake.release(held)
        self._note_deleted(lineage, number)
        self._server.ask(self._client.delete_model_version, lineage, str(number))
        if own:
            with suppress(NotFoundError):
                self._server.ask(self._client.delete_run, entity.run_id)
        self._tell(lineage)

    def _owns_run(self, lineage: str, entity: Any) -> bool:
        """Whether a version's files are its own, not of another version or lineage that it was registered from."""
        found = self._search(f"run_id = '{entity.run_id}'")
        if [row.version for row in found if row.name == lineage] != [entity.version]:
            return False
        experiment = self._runs_of(lineage)
        try:
            return experiment is not None and self._run(entity.run_id).info.experiment_id == experiment.experiment_id
        except NotFoundError:
            return True

    def _log_deletion(self, lineage: str, number: int, why: Why) -> None:
        self._audit.append(lineage, action="delete", before=number, actor=why.actor, reason=why.reason, via=why.via)

    def _condemn(self, lineage: str, number: int, why: Why) -> None:
        """Mark a version as being deleted, unless it is in use."""
        info = self.version(lineage, number)
        children = [version.number for version in self.versions(lineage) if version.parent == number]
        if children:
            raise ConflictError(f"Version {number} of `{lineage}` has versions learned on it: {children}.")
        _refuse_named(info.lineage, number, info.aliases)
        if CANDIDATE in info.aliases:
            self._move(lineage, CANDIDATE, None, why)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._server.ask(self._client.set_model_version_tag, lineage, str(number), DELETED_MARK, now)
        names = [alias for alias, named in self.aliases(lineage).items() if named == number]
        try:
            _refuse_named(lineage, number, names)
        except ConflictError:
            self._server.ask(self._client.delete_model_version_tag, lineage, str(number), DELETED_MARK)
            raise

    def _note_deleted(self, lineage: str, number: int) -> None:
        """Tell those who have a copy (`deleted`); who looks every second has none of long ago."""
        known = self._lineage(lineage).tags.get(DELETED_TAG, "").split(",")
        value = ",".join([*(name for name in known if name not in {"", str(number)}), str(number)][-_TOLD:])
        self._server.ask(self._client.set_registered_model_tag, lineage, DELETED_TAG, value)

    def _empty(self, folder: str) -> None:
        """Delete a folder of the store, and list it to see that it is gone."""
        self._store.delete_prefix(f"{folder}/")
        if left := list(self._store.list(f"{folder}/")):
            raise UnavailableError(f"{len(left)} objects in {folder} could not be deleted: try again.")

    def _unfinished(self, lineage: str) -> dict[int, tuple[str, ...]]:
        """Versions whose deletion was interrupted, in order, and the concepts that each knows."""
        found = [entity for entity in self._search(f"name = '{lineage}'") if DELETED_MARK in entity.tags]
        known = {int(e.version): concepts_of(e) if f"{TAG}concepts" in e.tags else () for e in found}
        return dict(sorted(known.items()))

    def _vanished(self, lineage: str, history: Sequence[Entry]) -> tuple[int, ...]:
        """Versions of which MLflow knows no more, and whose deletion nobody wrote down."""
        there = {int(entity.version) for entity in self._search(f"name = '{lineage}'")}
        moved = {number or 0 for entry in history for number in (entry.before, entry.after)}
        ever = range(1, max(there | moved, default=0) + 1)
        return tuple(sorted(set(ever) - there - _deleted(history)))

    def _orphans(self, lineage: str, since: datetime) -> tuple[str, ...]:
        """Runs begun before `since` that wrote files, without a version."""
        experiment = self._runs_of(lineage)
        if experiment is None:
            return ()
        prefix = f"{ARTIFACTS}/{experiment.experiment_id}/"
        keys = (key.removeprefix(prefix).split("/") for key in self._store.list(prefix))
        wrote = {key[0] for key in keys if key[1:2] == ["artifacts"]}
        published = {entity.run_id for entity in self._search(f"name = '{lineage}'")}
        return tuple(run_id for run_id in sorted(wrote - published) if self._begun_before(run_id, since))

    def _runs_of(self, lineage: str) -> Any:
        """The experiment that has a lineage's runs; None: there never was one."""
        return self._server.ask(self._client.get_experiment_by_name, experiment_of(lineage))

    def _begun_before(self, run_id: str, since: datetime) -> bool:
        try:
            run: Any = self._run(run_id)
        except NotFoundError:
            return False  # not ours to judge
        return bool(run.info.start_time / 1000 < since.timestamp())


def find_abandoned(versions: Sequence[VersionInfo], history: Sequence[Entry], since: datetime) -> tuple[int, ...]:
    """Versions that nothing points at, nothing happened to since, and no kept version was learned on; newest first."""
    parents = {version.number: version.parent for version in versions}
    moves = [entry for entry in history if datetime.fromisoformat(entry.at) >= since]
    moved = {number for entry in moves for number in (entry.before, entry.after)}
    kept: set[int] = set()
    for version in versions:
        if version.aliases or version.created >= since or version.number in moved:
            number: int | None = version.number
            while number in parents and number not in kept:
                kept.add(number)
                number = parents[number]
    return tuple(sorted(parents.keys() - kept, reverse=True))


def _deleted(history: Sequence[Entry]) -> set[int | None]:
    """Versions of whose deletion a log tells."""
    return {entry.before for entry in history if entry.action == "delete"}


def _refuse_named(lineage: str, number: int, aliases: Sequence[str]) -> None:
    used = [alias for alias in aliases if alias != CANDIDATE]
    if used:
        raise ConflictError(
            f"Version {number} of `{lineage}` is {' and '.join(used)}; move that first.", param="version"
        )
