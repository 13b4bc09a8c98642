"""What a person asks a job for, and what the job answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from cp_train.plan import LearningConfig
from services.errors import PalimpsestError
from services.lease import leave_place
from services.lineage import Verdict
from services.objects import open_store
from services.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asks for.

    Attributes:
        noun: the concept's class noun; empty where there is none.
        images: a directory, `s3://bucket/prefix`, or an intake id.
        again: learn even if the same was learned before.
        place: in the lineage's queue of writers, taken when this was submitted; None: the last one when the job begins.
        actor: who asked for it, for the history; empty: the user that this process belongs to.
    """

    lineage: str
    concept: str
    noun: str
    images: str
    base: str
    config: LearningConfig
    again: bool = False
    actor: str = ""
    place: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The last line of a job's log."""

    lineage: str
    version: int
    parent: int | None
    run_id: str
    digest: str
    gate: Verdict
    live: bool

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Place:
    """A request's place in the lineage's queue of writers, if one (`number`) was taken when it was submitted."""

    def __init__(self, lineage: str, number: int | None, settings: Settings) -> None:
        self._lineage, self._number, self._settings = lineage, number, settings

    def take(self) -> int | None:
        """The place, from now on somebody else's care."""
        number, self._number = self._number, None
        return number

    @contextmanager
    def given_up_on_failure(self) -> Iterator[None]:
        """Let those behind pass at once if the body of the `with` fails before it takes the place."""
        try:
            yield
        except BaseException:
            if self._number is not None:
                with suppress(PalimpsestError):  # they wait it out then
                    leave_place(open_store(self._settings), self._lineage, self._number)
            raise
