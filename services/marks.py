"""How far the audit log of a lineage was carried out: a tag of its registered model for each alias that moves."""

from dataclasses import dataclass
from typing import Any

from services.versions import TAG

_NONE = "none"


@dataclass(frozen=True)
class Mark:
    """Which entry of an alias was carried out last, and where that left the alias: `12:3`, `12:none`."""

    entry: int
    number: int | None

    @staticmethod
    def of(model: Any, alias: str) -> "Mark":
        """What a registered model's tag says; nothing readable counts as nothing."""
        entry, _, number = model.tags.get(mark_tag(alias), "").partition(":")
        if not entry.isdecimal() or not (number.isdecimal() or number == _NONE):
            return Mark(0, None)
        return Mark(int(entry), None if number == _NONE else int(number))

    def __str__(self) -> str:
        """The tag's value."""
        return f"{self.entry}:{_NONE if self.number is None else self.number}"


def mark_tag(alias: str) -> str:
    """Name of an alias's tag."""
    return f"{TAG}recorded.{alias}"
