"""Tokens and what they open, on a real store of either kind."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.auth import Door, People, actor
from services.errors import ForbiddenError, InputError, NotFoundError, UnauthorizedError, UnavailableError
from services.objects import DirectoryStore, ObjectStore
from services.settings import Settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def people(store: ObjectStore) -> People:
    return People(store)


def test_a_token_lets_its_owner_in_and_is_nowhere_to_be_read(people: People, store: ObjectStore) -> None:
    token = people.invite("ada")
    person = Door(people).admit(token)
    assert (person.name, person.admin, person.watches, person.right("pets")) == ("ada", False, False, None)
    secret = token.split("_", 2)[2]
    kept = {key: store.get(key) for key in store.list()}
    assert not [key for key, data in kept.items() if secret in key or secret.encode() in data]
    assert any(key.endswith(hashlib.sha256(token.encode()).hexdigest()) for key in kept)
    assert token not in repr(person)
    assert hashlib.sha256(token.encode()).hexdigest() not in repr(person)


def test_any_other_token_is_nobodys(people: People) -> None:
    people.invite("bob")
    secret = people.invite("ada").split("_", 2)[2]
    wrong = ["", "ada", "palimpsest_ada_", f"palimpsest_ada_{'A' * 43}", f"palimpsest_../x_{'A' * 43}"]
    for token in [*wrong, f"palimpsest_bob_{secret}", f"palimpsest_ada_{secret}x", f"palimpsest_ada_{secret}\n"]:
        with pytest.raises(UnauthorizedError):
            Door(people).admit(token)


def test_rights_are_of_a_lineage(people: People) -> None:
    for name in ("ada", "bob"):
        people.invite(name)
    people.claim("ada", "pets")
    people.grant("bob", "pets", "generate")
    people.grant("bob", "mugs", "owner")
    ada, bob = people.known("ada"), people.known("bob")
    assert [ada.right(lineage) for lineage in ("pets", "mugs", "petsy", "")] == ["owner", None, None, None]
    assert [bob.right(lineage) for lineage in ("pets", "mugs")] == ["generate", "owner"]
    for _ in range(2):
        people.revoke("bob", "pets")
    assert people.known("bob").right("pets") is None
    assert people.known("bob").right("mugs") == "owner"
    assert [person.name for person in people.all()] == ["ada", "bob"]


def test_an_administrator_may_everything(people: People) -> None:
    people.invite("root-of-it", admin=True)
    person = people.known("root-of-it")
    assert (person.right("anything"), person.watches) == ("owner", True)


def test_a_lineage_is_begun_by_one_of_many(people: People) -> None:
    names = [f"p{number}" for number in range(8)]

    def begins(name: str) -> bool:
        try:
            people.claim(name, "pets")
        except ForbiddenError:
            return False
        return True

    for name in names:
        people.invite(name)
    with ThreadPoolExecutor(8) as pool:
        begun = dict(zip(names, pool.map(begins, names), strict=True))
    (owner,) = [name for name, first in begun.items() if first]
    assert [name for name in names if people.known(name).right("pets")] == [owner]
    people.claim(owner, "pets")
    with pytest.raises(ForbiddenError, match="belongs to somebody else"):
        people.claim(next(name for name in names if name != owner), "pets")


def test_who_was_dismissed_is_out_but_what_they_began_is_not_free(people: People) -> None:
    token = people.invite("ada")
    people.claim("ada", "pets")
    people.dismiss("ada")
    with pytest.raises(UnauthorizedError):
        Door(people).admit(token)
    people.invite("bob")
    with pytest.raises(ForbiddenError):
        people.claim("bob", "pets")
    assert people.find("ada") is None
    with pytest.raises(NotFoundError):
        people.dismiss("ada")


def test_tokens_are_made_anew(people: People) -> None:
    first = people.invite("ada")
    second = people.invite("ada")
    assert [Door(people).admit(token).name for token in (first, second)] == ["ada"] * 2
    third = people.invite("ada", anew=True)
    assert Door(people).admit(third).name == "ada"
    for token in (first, second):
        with pytest.raises(UnauthorizedError):
            Door(people).admit(token)


def test_rights_are_of_people_that_there_are(people: People) -> None:
    with pytest.raises(NotFoundError):
        people.grant("nobody", "pets", "owner")
    for name in ("Ada", "base", "a/b", ""):
        with pytest.raises(InputError):
            people.invite(name)
    people.invite("ada")
    with pytest.raises(InputError):
        people.grant("ada", "a/../b", "owner")


class Outage(DirectoryStore):
    down = False

    def list(self, prefix: str = "") -> object:  # type: ignore[override]
        if self.down:
            raise UnavailableError("The store is down.")
        return super().list(prefix)


def test_a_change_is_seen_within_seconds_and_an_outage_is_waited_out(tmp_path: Path) -> None:
    store, clock = Outage(tmp_path), Clock()
    people = People(store)
    door, token = Door(people, clock=clock), people.invite("ada")
    assert door.admit(token).right("pets") is None
    people.claim("ada", "pets")
    assert door.admit(token).right("pets") is None, "known for some seconds"
    clock.now += 6
    assert door.admit(token).right("pets") == "owner"
    store.down = True
    clock.now += 600
    assert door.admit(token).right("pets") == "owner", "what was known stands in"
    with pytest.raises(UnavailableError):
        door.admit("palimpsest_bob_" + "A" * 43)
    clock.now += 3600
    with pytest.raises(UnavailableError):
        door.admit(token)
    store.down = False
    clock.now += 6
    people.dismiss("ada")
    with pytest.raises(UnauthorizedError):
        door.admit(token)


def test_the_watch_token_sees_figures_and_no_lineage(people: People) -> None:
    door = Door(people, watch_token="figures-0123456789")
    watcher = door.admit("figures-0123456789")
    assert (watcher.watches, watcher.admin, watcher.right("pets")) == (True, False, None)
    with pytest.raises(UnauthorizedError):
        Door(people).admit("")


def test_the_history_has_the_name_of_the_tokens_owner(people: People, store: ObjectStore, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, auth="tokens", token=people.invite("ada"))
    assert actor(settings, store) == "ada"
    assert actor(settings.model_copy(update={"auth": "off"}), store) == ""
    with pytest.raises(UnauthorizedError):
        actor(settings.model_copy(update={"token": settings.token[:-1]}), store)
    assert settings.token not in repr(settings)
    assert settings.token not in "".join(settings.environment().values())
