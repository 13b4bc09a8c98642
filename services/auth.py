"""Who somebody is and what they may do: tokens of people, and their roles, in the object store.

A token is `palimpsest_<name>_<secret>`, shown once when it is made. At rest there is only its SHA-256: the secret has
256 random bits, so a slower hash would protect nothing more. Every fact is an object of its own, and most say all by
being there, so that two administrators at once lose nothing, and one listing tells all of a person:

    people/<name>/tokens/<sha256>      a token that is valid
    people/<name>/admin                may do everything with every lineage
    people/<name>/generate/<lineage>   may draw and classify with a lineage, and see its tree
    owners/people/<name>/<lineage>     may also learn, move `live`, see and stop jobs
    owners/lineages/<lineage>          who began the lineage: created only if absent, so that nobody else can
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from services.errors import ForbiddenError, NotFoundError, UnauthorizedError
from services.manifest import NAME, check_name
from services.objects import ObjectStore
from services.recall import Recall
from services.settings import Settings

PEOPLE, OWNERS = "people", "owners"
"""Folders of the store."""
Right = Literal["generate", "owner"]
"""What somebody may do with one lineage; an owner may do all that `generate` may."""

_TOKEN = re.compile(rf"palimpsest_({NAME.pattern})_([A-Za-z0-9_-]{{43}})")
_BYTES = 32
_ADMIN = "admin"


@dataclass(frozen=True)
class Person:
    """Somebody, and what they may do.

    Attributes:
        name: empty where nobody has to say who they are.
        watches: may see everybody's figures; an administrator may.
        owns, draws: lineages.
        digests: of the tokens that are valid.
    """

    name: str
    admin: bool = False
    watches: bool = False
    owns: frozenset[str] = frozenset()
    draws: frozenset[str] = frozenset()
    digests: frozenset[str] = field(default=frozenset(), repr=False)

    def right(self, lineage: str) -> Right | None:
        """What they may do with a lineage; None: not even know of it."""
        if self.admin or lineage in self.owns:
            return "owner"
        return "generate" if lineage in self.draws else None


ANYBODY = Person("", admin=True, watches=True)
"""Who asks where there is no authentication."""


class People:
    """All people of one store. Every method raises UnavailableError if it does not answer, InputError for no name."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def invite(self, name: str, *, admin: bool = False, anew: bool = False) -> str:
        """A new token for somebody, who is made if need be; nobody can read it anywhere again.

        Args:
            name: of the person.
            admin: make them an administrator, too.
            anew: make their earlier tokens invalid.
        """
        token = f"palimpsest_{check_name(name, 'name')}_{secrets.token_urlsafe(_BYTES)}"
        if anew:
            self._store.delete_prefix(f"{PEOPLE}/{name}/tokens/")
        if admin:
            self._store.put(f"{PEOPLE}/{name}/{_ADMIN}", _now())
        self._store.put(f"{PEOPLE}/{name}/tokens/{_digest(token)}", _now())
        return token

    def dismiss(self, name: str) -> None:
        """Take away every token and right; lineages that they began stay theirs in name, so that nobody takes them.

        Raises:
            NotFoundError: there is no such person.
        """
        self.known(name)
        self._store.delete_prefix(f"{PEOPLE}/{name}/")
        self._store.delete_prefix(f"{OWNERS}/people/{name}/")

    def grant(self, name: str, lineage: str, right: Right) -> None:
        """Let somebody draw with a lineage, or own it.

        Raises:
            NotFoundError: there is no such person.
        """
        self.known(name)
        check_name(lineage, "lineage")
        if right == "owner":
            self._store.create(f"{OWNERS}/lineages/{lineage}", name.encode())
            self._store.put(f"{OWNERS}/people/{name}/{lineage}", _now())
        else:
            self._store.put(f"{PEOPLE}/{name}/generate/{lineage}", _now())

    def revoke(self, name: str, lineage: str) -> None:
        """Take away what somebody may do with a lineage; it may be repeated.

        Raises:
            NotFoundError: there is no such person.
        """
        self.known(name)
        check_name(lineage, "lineage")
        self._store.delete(f"{OWNERS}/people/{name}/{lineage}")
        self._store.delete(f"{PEOPLE}/{name}/generate/{lineage}")

    def claim(self, name: str, lineage: str) -> None:
        """Make somebody the owner of a lineage that nobody began yet; what is theirs already stays so.

        Raises:
            ForbiddenError: it is somebody else's.
        """
        key = f"{OWNERS}/lineages/{check_name(lineage, 'lineage')}"
        check_name(name, "name")
        if not self._store.create(key, name.encode()) and self._store.get(key) != name.encode():
            raise ForbiddenError(f"`{lineage}` belongs to somebody else; choose another name.", param="lineage")
        self._store.put(f"{OWNERS}/people/{name}/{lineage}", _now())

    def find(self, name: str) -> Person | None:
        """What is known of somebody; None if nobody is called so."""
        folders = (f"{PEOPLE}/{check_name(name, 'name')}/", f"{OWNERS}/people/{name}/")
        mine, owns = (frozenset(key.removeprefix(folder) for key in self._store.list(folder)) for folder in folders)
        if not mine:
            return None
        draws, digests = (_under(folder, mine) for folder in ("generate/", "tokens/"))
        admin = _ADMIN in mine
        return Person(name, admin=admin, watches=admin, owns=owns, draws=draws, digests=digests)

    def known(self, name: str) -> Person:
        """The same.

        Raises:
            NotFoundError: there is no such person.
        """
        if (person := self.find(name)) is None:
            raise NotFoundError(f"There is nobody called `{name}`; `palimpsest invite {name}` first.", param="name")
        return person

    def all(self) -> list[Person]:
        """Everybody, by name."""
        names = sorted({key.split("/")[1] for key in self._store.list(f"{PEOPLE}/")})
        return [person for name in names if NAME.fullmatch(name) and (person := self.find(name))]


class Door:
    """Lets people in by their tokens. Safe to use from many threads.

    A change is in force within seconds while the store answers; else what was known stands in (`recall.py`).

    Args:
        people: everybody.
        watch_token: of who sees everybody's figures and nothing else; empty: there is none.
        clock: seconds that only grow.
    """

    def __init__(self, people: People, *, watch_token: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._watch, self._known = watch_token.encode(), Recall(people.find, clock=clock)

    def admit(self, token: str) -> Person:
        """The person whose token it is.

        Raises:
            UnauthorizedError: it is nobody's.
            UnavailableError: the store does not answer, and nothing is known of that person.
        """
        if self._watch and hmac.compare_digest(token.encode(), self._watch):
            return Person("", watches=True)
        found = _TOKEN.fullmatch(token)
        person = self._known.get(found[1]) if found else None
        if person is None or _digest(token) not in person.digests:
            raise UnauthorizedError("The token is not valid (any more); `palimpsest invite` makes one.")
        return person

    def forget(self, name: str) -> None:
        """Look a person up anew next time."""
        self._known.forget(name)


def actor(settings: Settings, store: ObjectStore) -> str:
    """Who is at this terminal, for the history: the owner of its token; empty where there is no authentication.

    Raises:
        UnauthorizedError: the token is nobody's.
        UnavailableError: the store does not answer.
    """
    return Door(People(store)).admit(settings.token).name if settings.auth == "tokens" and settings.token else ""


def _under(folder: str, keys: Set[str]) -> frozenset[str]:
    return frozenset(key.removeprefix(folder) for key in keys if key.startswith(folder))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> bytes:
    """What a fact's object holds: since when it has been one."""
    return datetime.now(UTC).isoformat(timespec="seconds").encode()
