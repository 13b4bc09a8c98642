"""Which branches of a lineage's tree are abandoned."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.audit import Entry
from services.lineage import CANDIDATE, LIVE, VersionInfo
from services.retention import find_abandoned

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def old(number: int, parent: int | None, *aliases: str, days: int = 100) -> VersionInfo:
    plain = VersionInfo("l", number, parent, "", (), "", "", "", NOW, True, (), False, aliases)
    return replace(plain, created=NOW - timedelta(days=days))


def moved(before: int | None, after: int | None, *, days: int) -> Entry:
    at = (NOW - timedelta(days=days)).isoformat()
    return Entry(
        number=1, at=at, action="move", alias=LIVE, before=before, after=after, actor="", reason="", via="person"
    )


@pytest.mark.parametrize(
    ("versions", "history", "abandoned"),
    [
        ([], [], ()),
        ([old(1, None), old(2, 1), old(3, 2, LIVE)], [], ()),
        ([old(1, None), old(2, 1), old(3, 1, LIVE)], [], (2,)),
        ([old(1, None), old(2, 1), old(3, 2), old(4, 1, LIVE)], [], (3, 2)),
        ([old(1, None), old(2, 1), old(3, 2, CANDIDATE), old(4, 1, LIVE)], [], ()),
        ([old(1, None), old(2, 1), old(3, 2, days=5), old(4, 1, LIVE)], [], ()),
        ([old(1, None), old(2, 1), old(3, 2), old(4, 1, LIVE)], [moved(3, 4, days=5)], ()),
        ([old(1, None), old(2, 1), old(3, 2), old(4, 1, LIVE)], [moved(2, 4, days=5)], (3,)),
        ([old(1, None), old(2, 1), old(3, 2), old(4, 1, LIVE)], [moved(3, 4, days=50)], (3, 2)),
        ([old(5, 4, LIVE), old(7, 6)], [], (7,)),
        ([old(1, None)], [], (1,)),
    ],
)
def test_what_counts_as_abandoned(
    versions: list[VersionInfo], history: list[Entry], abandoned: tuple[int, ...]
) -> None:
    assert find_abandoned(versions, history, NOW - timedelta(days=30)) == abandoned
