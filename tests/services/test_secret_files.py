"""Secrets of the local stack: whole, only once, and for one person's eyes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.secret_files import kept_secret


def test_a_secret_is_made_once_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert [kept_secret(path, new) for new in ("first", "second")] == ["first"] * 2
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["key"]


def test_what_a_starter_left_that_died_is_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    (tmp_path / "key.new").write_text("hal")
    assert [kept_secret(path, new) for new in ("first", "second")] == ["first"] * 2


def test_a_starter_that_dies_leaves_none_or_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off where it hands the text to the disk."""

    def broken(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(KeyboardInterrupt):
        kept_secret(tmp_path / "key", "first")
    monkeypatch.undo()
    assert not (tmp_path / "key").exists()
    assert kept_secret(tmp_path / "key", "second") == "second"


@pytest.mark.parametrize("left", [False, True])
def test_of_two_starters_at_once_both_have_the_same(tmp_path: Path, left: bool) -> None:
    path = tmp_path / "key"
    if left:
        path.touch()
    script = "import sys; from pathlib import Path; from services.secret_files import kept_secret; input(); "
    script += "print(kept_secret(Path(sys.argv[1]), sys.argv[2]))"
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", script, path, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    for starter in starters:
        assert starter.stdin
        starter.stdin.write("\n")
        starter.stdin.flush()
    assert len({starter.communicate()[0] for starter in starters}) == 1
