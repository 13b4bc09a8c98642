"""The aliases of a lineage that move, and the record of every move.

MLflow has no compare-and-set, so moves are put in order by the audit log (`audit.py`), which has one: a move is first
written down, which of two at once only one can do as the next entry, then carried out, then marked in a tag of the
registered model as carried out. Whoever finds a later entry afterwards lets that one win. What an alias does without
an entry was done in MLflow itself; the next reader writes it down as such.

One race is left, and docs/operations.md tells of it: a move made in MLflow itself in the milliseconds between the last
look of `promote` and its write is overruled. MLflow's webhook tells of every move, that one too, so it is found out
afterwards (`look_into`).

Reading `aliases`, and what is built on them, writes down what was done in MLflow itself. What a replica follows and
draws with (`targets`, `resolve`, `fetch`) is read from MLflow alone, so that no swap waits for the audit log.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from services.audit import UNKNOWN, AuditLog, Entry, Via, current_user
from services.canary import CANARY, PERCENT_TAG
from services.catalogue import CANDIDATE, LIVE, RECORDED, Catalogue, number_of, numbers_of, unrecorded
from services.errors import ConflictError, InputError, NotFoundError, PalimpsestError, RefusedError
from services.marks import Mark, mark_tag
from services.objects import ObjectStore
from services.settings import Settings
from services.versions import DELETED_MARK, TAG, VersionInfo

FOUND = "moved in MLflow, not through Palimpsest"
"""Reason in the log of a move that nobody gave a reason for."""

_SETTLING = 30.0  # seconds that a move may take from its entry to its mark
_QUIET = 60.0  # seconds until the log is tried again when it could not be written
_ASKEW = 10.0  # seconds by which MLflow's clock and ours may differ
_log = logging.getLogger("palimpsest.registry")


@dataclass(frozen=True, kw_only=True)
class Why:
    """Who wants something, why, and by which way."""

    actor: str = ""
    reason: str = ""
    via: Via = "person"
    undoes: int | None = None


class Moves(Catalogue):
    """Moves aliases, and tells who moved them. Raises as `Catalogue` does."""

    def __init__(self, settings: Settings, store: ObjectStore) -> None:
        super().__init__(settings, store)
        self._audit = AuditLog(store)
        self._quiet_until: dict[str, float] = {}
        self._noticing: set[str] = set()  # lineages: what is found while one is written down is the next reader's

    def promote(self, lineage: str, number: int, *, expected: int | None, actor: str = "", reason: str = "") -> bool:
        """Make a new version `live` if `live` still is `expected`; else it stays `candidate`.

        A repeat of a promotion that somebody has rolled back since changes nothing.

        Args:
            lineage: name.
            number: the new version.
            expected: number of the version that it was trained on; None if there was no live version.
            actor: who asked for it; empty: the user that this process belongs to.
            reason: why; kept.

        Returns:
            Whether the version is live.

        Raises:
            NotFoundError: no such lineage or version.
        """
        why = Why(actor=actor, reason=reason or "learned and passed its gate", via="job")
        while True:
            tail = self._audit.tail(lineage)
            info = self.version(lineage, number)
            standing = self._standing(lineage, LIVE)
            if standing != number and (standing != expected or info.promoted):
                self._propose(info, actor)
                return False
            if self._move(lineage, LIVE, number, why, tail=tail):
                self._crown(lineage, number, why)
                return self.aliases(lineage).get(LIVE) == number

    def set_live(self, lineage: str, number: int, *, actor: str = "", reason: str = "") -> None:
        """Make any version `live`, whatever was: a person's promotion or roll-back.

        Args:
            lineage: name.
            number: the version.
            actor: who wants it; empty: the user that this process belongs to.
            reason: why; kept.

        Raises:
            NotFoundError: no such lineage or version.
            RefusedError: the version's manifest does not stand verification.
            ConflictError: the version is being deleted.
        """
        self._person_moves(lineage, number, Why(actor=actor, reason=reason))

    def undo(self, lineage: str, *, actor: str = "", reason: str = "") -> int:
        """Take back the newest move of `live` that was not taken back yet; returns the version that is live now.

        Raises:
            NotFoundError: there is no move to take back, or no version to go back to.
            RefusedError, ConflictError: as `set_live`.
        """
        moves = [entry for entry in self.history(lineage) if entry.alias == LIVE and entry.action == "move"]
        standing: list[Entry] = []
        for entry in moves:
            if entry.undoes is None:
                standing.append(entry)
            else:
                standing = [earlier for earlier in standing if earlier.number != entry.undoes]
        if not standing or standing[-1].before is None:
            raise NotFoundError(f"There is no move of `{lineage}` to take back; name a version to promote.")
        last = standing[-1]
        why = Why(actor=actor, reason=reason or f"undo of entry {last.number}", undoes=last.number)
        assert last.before is not None
        self._person_moves(lineage, last.before, why)
        return last.before

    def clear_live(self, lineage: str, *, actor: str = "", reason: str = "") -> None:
        """Leave the lineage without a `live` version, so that its next concept begins from nothing; may be repeated.

        Raises:
            NotFoundError: no such lineage.
        """
        self._move(lineage, LIVE, None, Why(actor=actor, reason=reason))
        self._tell(lineage)

    def may_begin(self, lineage: str) -> bool:
        """Whether a lineage may begin from nothing: no version is live, as none ever was, or it was cleared on purpose.

        Raises:
            NotFoundError: no such lineage.
        """
        if LIVE in self.aliases(lineage):
            return False
        last = self._audit.last_move(lineage, LIVE)
        cleared = last is not None and last.after is None and last.via == "person"
        return cleared or not any(version.promoted for version in self.versions(lineage))

    def set_canary(self, lineage: str, number: int, percent: float, *, actor: str = "", reason: str = "") -> None:
        """Send a share of the lineage's requests to a version. Another canary is ended first: the share is not its own.

        Raises:
            InputError: a share that is not between 0 and 100, both excluded.
            NotFoundError: no such lineage or version.
            RefusedError: the version's manifest does not stand verification.
        """
        if not 0 < percent < 100:  # noqa: PLR2004
            raise InputError("canary_percent: more than 0 and less than 100.", param="canary_percent")
        self.manifest(lineage, number)
        if self.aliases(lineage).get(CANARY) not in (None, number):
            self.end_canary(lineage, actor=actor, reason=reason or f"version {number} is tried instead")
        before = self.canary(lineage)
        self._server.ask(self._client.set_registered_model_tag, lineage, PERCENT_TAG, f"{percent:g}")
        self._move(lineage, CANARY, number, Why(actor=actor, reason=reason))
        if before and before.percent != percent:
            self._audit.append(
                lineage,
                alias=CANARY,
                before=number,
                to=number,
                actor=actor,
                reason=f"share {before.percent:g}% -> {percent:g}%{f': {reason}' if reason else ''}",
                via="person",
            )
        self._tell(lineage)

    def end_canary(
        self, lineage: str, number: int | None = None, *, actor: str = "", reason: str = "", via: Via = "person"
    ) -> bool:
        """Send all requests to `live` again, unless `number` is given and the canary is another; may be repeated.

        Returns:
            Whether there was such a canary.

        Raises:
            NotFoundError: no such lineage.
        """
        named = self.aliases(lineage).get(CANARY)
        if named is None or number not in {None, named}:
            return False
        self._move(lineage, CANARY, None, Why(actor=actor, reason=reason, via=via))
        self._tell(lineage)
        return True

    def aliases(self, lineage: str) -> dict[str, int]:
        """As `Catalogue.aliases`, once what was done in MLflow itself is written down, if it can be."""
        return numbers_of(self._noticed(lineage))

    def record_found(self, lineage: str) -> None:
        """Write down what was done in MLflow itself, of which `Targets.unrecorded` tells; may be repeated.

        Takes as long as the store does. When the log could not be written, nothing is tried again for a minute.

        Raises:
            NotFoundError: no such lineage.
        """
        if not self._busy(lineage):
            self._noticed(lineage)

    def live_before(self, lineage: str, number: int) -> Iterator[int]:
        """Versions that were live before a version was, the latest first; none of before `live` was cleared.

        Raises:
            RefusedError: the log was changed.
        """
        told = {number}
        for move in self._audit.moves(lineage, LIVE):
            for standing in (move.after, move.before):
                if standing is None:
                    return
                if standing not in told:
                    told.add(standing)
                    yield standing

    def history(self, lineage: str) -> list[Entry]:
        """Who did what to a lineage, oldest first; what was done in MLflow itself is found out and written down first.

        Raises:
            NotFoundError: no such lineage.
            RefusedError: the log was changed.
        """
        model = self._noticed(lineage)
        for alias in RECORDED:
            self._write_down(model, alias)
        return self._audit.entries(lineage)

    def look_into(self, lineage: str, alias: str, number: int, at: datetime) -> bool:
        """Hear that an alias was moved to a version at a moment, and write down a move that nobody saw before it was
        overruled; whether this was one.

        Every move through Palimpsest is written down before MLflow hears of it, and every other by the next reader.

        Raises:
            NotFoundError: no such lineage.
        """
        now = number_of(self._noticed(lineage), alias)
        if alias not in RECORDED or now == number:
            return False
        since = at - timedelta(seconds=_SETTLING + _ASKEW)
        told = [entry for entry in self._audit.since(lineage, since) if entry.alias == alias]
        if any(number == (entry.before if entry.action == "overruled" else entry.after) for entry in told):
            return False
        reason = f"made in MLflow itself at {at.isoformat(timespec='seconds')}, and overwritten before anybody saw it"
        self._audit.append(
            lineage,
            action="overruled",
            alias=alias,
            before=number,
            to=now,
            actor=UNKNOWN,
            reason=reason,
            via="found",
        )
        _log.warning("%s: a move of %s to %d in MLflow itself was overruled", lineage, alias, number)
        return True

    def _person_moves(self, lineage: str, number: int, why: Why) -> None:
        self.manifest(lineage, number)
        before = self.aliases(lineage).get(LIVE)
        self._move(lineage, LIVE, number, why)
        try:
            self._crown(lineage, number, why)
        except (
            NotFoundError
        ):  # marked as deleted between our look and our move (`retention.py` looks the other way round)
            self._move(lineage, LIVE, before, Why(actor=why.actor, reason=f"version {number} was deleted", via=why.via))
            raise ConflictError(f"Version {number} of `{lineage}` is being deleted.", param="version") from None

    def _crown(self, lineage: str, number: int, why: Why) -> None:
        """Tags of a version that has just become live; it is no candidate any more."""
        if DELETED_MARK in self._server.ask(self._client.get_model_version, lineage, str(number)).tags:
            raise NotFoundError(f"Version {number} of `{lineage}` is being deleted.", param="version")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        tags = {"promoted": now, "promoted_by": why.actor or current_user(), "promoted_because": why.reason}
        for key, value in tags.items():
            self._server.ask(self._client.set_model_version_tag, lineage, str(number), f"{TAG}{key}", value)
        if self.aliases(lineage).get(CANDIDATE) == number:
            self._move(lineage, CANDIDATE, None, Why(actor=why.actor, reason="it is live", via=why.via))
        self._tell(lineage)

    def _tell(self, lineage: str) -> None:
        """Renew what MLflow's page of the lineage says."""

    def _propose(self, info: VersionInfo, actor: str) -> None:
        """Call a version `candidate` unless a newer one is, or it has had its turn."""
        aliases = self.aliases(info.lineage)
        if info.promoted or aliases.get(LIVE) == info.number or aliases.get(CANDIDATE, 0) >= info.number:
            return
        self._move(info.lineage, CANDIDATE, info.number, Why(actor=actor, reason="newest version", via="job"))

    def _move(
        self, lineage: str, alias: str, number: int | None, why: Why, *, tail: tuple[Entry, ...] | None = None
    ) -> bool:
        """Write a move down, carry it out, and let a later one win; False if `tail` was not the log's end any more."""
        before = self.aliases(lineage).get(alias)
        if before == number:
            return True
        entry = self._audit.append(
            lineage,
            after=tail,
            alias=alias,
            before=before,
            to=number,
            actor=why.actor,
            reason=why.reason,
            via=why.via,
            undoes=why.undoes,
        )
        if entry is None:
            return False
        self._carry_out(lineage, entry)
        while (last := self._audit.last_move(lineage, alias)) and last.number > entry.number:
            entry = last
            self._carry_out(lineage, entry)
        return True

    def _carry_out(self, lineage: str, entry: Entry) -> None:
        if entry.after is None:
            with suppress(NotFoundError):  # it is gone already
                self._server.ask(self._client.delete_registered_model_alias, lineage, entry.alias)
        else:
            self._server.ask(self._client.set_registered_model_alias, lineage, entry.alias, str(entry.after))
        self._mark(lineage, entry)

    def _mark(self, lineage: str, entry: Entry) -> None:
        value = str(Mark(entry.number, entry.after))
        self._server.ask(self._client.set_registered_model_tag, lineage, mark_tag(entry.alias), value)

    def _standing(self, lineage: str, alias: str) -> int | None:
        """Where an alias is, or is about to be: a move that was written down a moment ago counts as done."""
        model = self._noticed(lineage)
        last = self._audit.last_move(lineage, alias)
        if last and last.number > Mark.of(model, alias).entry and last.age() < _SETTLING:
            return last.after
        return number_of(model, alias)

    def _noticed(self, lineage: str) -> Any:
        """The registered model of a lineage, once what was done in MLflow itself is written down, if it can be.

        Costs nothing where nothing was done. A log that cannot be written fails no reader, but the one who finds that
        out waits for as long as the store takes to say so.
        """
        model = self._lineage(lineage)
        moved = unrecorded(model)
        if not moved or self._busy(lineage):
            return model
        self._noticing.add(lineage)
        try:
            for alias in moved:
                self._write_down(model, alias)
        except PalimpsestError as error:
            self._quiet_until[lineage] = time.monotonic() + _QUIET
            _log.warning("a move of %s in MLflow is not in the audit log yet: %s", lineage, error.message)
        finally:
            self._noticing.discard(lineage)
        return model

    def _busy(self, lineage: str) -> bool:
        """Whether what was done to a lineage is just being written down here, or could not be a moment ago."""
        return lineage in self._noticing or time.monotonic() < self._quiet_until.get(lineage, 0.0)

    def _write_down(self, model: Any, alias: str) -> None:
        """Bring the log up to where an alias is, unless a move of it is under way."""
        lineage, now, mark = model.name, number_of(model, alias), Mark.of(model, alias)
        tail = self._audit.tail(lineage)
        if mark.entry > (tail[0].number if tail else 0):
            raise RefusedError(f"The audit log of `{lineage}` has lost its end: entry {mark.entry} was carried out.")
        last = self._audit.last_move(lineage, alias)
        if last is None and now is None:
            return
        if last is None or last.after != now:
            if last and last.number > mark.entry and last.age() < _SETTLING:
                return
            before = last.after if last else None
            last = self._audit.append(
                lineage, after=tail, alias=alias, before=before, to=now, actor=UNKNOWN, reason=FOUND, via="found"
            )
            if last is None:
                return  # somebody else writes; the next reader looks again
            _log.warning("%s: %s is at %s, moved in MLflow itself", lineage, alias, now)
            self._mark(lineage, last)
            if alias == LIVE and now is not None:
                with suppress(NotFoundError):  # it is being deleted, or was
                    self._crown(lineage, now, Why(actor=UNKNOWN, reason=FOUND, via="found"))
                    return
            self._tell(lineage)
        elif mark != Mark(last.number, now):
            self._mark(lineage, last)
