"""The commands of `palimpsest` that say who may do what. They work on the store, as an operator may, not over HTTP."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.settings import Settings

if TYPE_CHECKING:
    from services.auth import People, Person

Run = Callable[[argparse.Namespace, Settings], None]
Command = Callable[[str, Run, str], argparse.ArgumentParser]

PEOPLE = {"people", "invite", "dismiss", "grant", "revoke"}
"""The commands."""


def add_people(command: Command) -> None:
    """Add the commands to the parser."""
    command("people", _people, "who has a token, and what they may do")
    invite = command("invite", _invite, "make a token for somebody, and show it once")
    invite.add_argument("--admin", action="store_true", help="let them do everything with every lineage")
    invite.add_argument("--anew", action="store_true", help="make their earlier tokens invalid")
    dismiss = command("dismiss", _dismiss, "take away all tokens and rights of somebody")
    grant = command("grant", _grant, "let somebody draw with a lineage, or own it")
    revoke = command("revoke", _revoke, "take away what somebody may do with a lineage")
    for named in (invite, dismiss, grant, revoke):
        named.add_argument("name", help="of the person")
    for given in (grant, revoke):
        given.add_argument("on", metavar="LINEAGE")
    grant.add_argument("right", choices=("generate", "owner"), help="owner: also learn, and move live")


def _people(_: argparse.Namespace, settings: Settings) -> None:
    for person in _all(settings).all():
        print(tell(person), flush=True)


def tell(person: "Person") -> str:
    """A person in one line."""
    rights = ["admin"] if person.admin else []
    rights += [f"owns {lineage}" for lineage in sorted(person.owns)]
    rights += [f"draws with {lineage}" for lineage in sorted(person.draws - person.owns)]
    count = len(person.digests)
    tokens = f"{count} token{'' if count == 1 else 's'}"
    return f"{person.name}  {'; '.join([tokens, *rights])}"


def _invite(options: argparse.Namespace, settings: Settings) -> None:
    print(_all(settings).invite(options.name, admin=options.admin, anew=options.anew))


def _dismiss(options: argparse.Namespace, settings: Settings) -> None:
    _all(settings).dismiss(options.name)
    print(f"{options.name} may do nothing any more")


def _grant(options: argparse.Namespace, settings: Settings) -> None:
    _all(settings).grant(options.name, options.on, options.right)
    print(tell(_all(settings).known(options.name)))


def _revoke(options: argparse.Namespace, settings: Settings) -> None:
    _all(settings).revoke(options.name, options.on)
    print(tell(_all(settings).known(options.name)))


def _all(settings: Settings) -> "People":
    from services.auth import People
    from services.objects import open_store

    return People(open_store(settings))
