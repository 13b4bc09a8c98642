"""The commands that keep lineages in order, as a person types them, on a real registry."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.audit import Entry
from services.cli import main
from services.objects import open_store
from services.operations_cli import tell
from services.retention import Retention
from services.settings import Settings, get_settings
from tests.lineages import Mlflow, numbers, publish

Say = Callable[..., str]


@pytest.fixture
def settings(mlflow_server: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name, value in mlflow_server.environment().items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield mlflow_server
    get_settings.cache_clear()


@pytest.fixture
def lineage_of_four(settings: Settings, lineage: str) -> str:
    """1 -> 2 -> 3 and, live, 1 -> 4."""
    keeper = Retention(settings, open_store(settings))
    first = publish(keeper, lineage)
    second = publish(keeper, lineage, parent=first)
    for parent in (second, first):
        publish(keeper, lineage, parent=parent)
    keeper.set_live(lineage, 3, actor="ada")
    keeper.set_live(lineage, 4, actor="ada", reason="sharper")
    return lineage


@pytest.fixture
def palimpsest(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command; what it said, or with `fails` the line on stderr."""

    def run(*words: str, fails: bool = False) -> str:
        capsys.readouterr()
        assert main(words) == int(fails), capsys.readouterr().err
        said = capsys.readouterr()
        return said.err if fails else said.out

    return run


def test_people_come_and_go(palimpsest: Say, settings: Settings, lineage_of_four: str) -> None:
    """And what was done with a token has its owner's name."""
    name = f"p{lineage_of_four}"
    token = palimpsest("invite", name, "--admin").strip()
    assert token.startswith(f"palimpsest_{name}_")
    assert palimpsest("grant", name, lineage_of_four, "owner") == f"{name}  1 token; admin; owns {lineage_of_four}\n"
    palimpsest("grant", name, "mugs", "generate")
    assert f"{name}  1 token; admin; owns {lineage_of_four}; draws with mugs\n" in palimpsest("people")
    assert palimpsest("revoke", name, "mugs").endswith(f"owns {lineage_of_four}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_AUTH", "tokens")
        patch.setenv("PALIMPSEST_TOKEN", token)
        get_settings.cache_clear()
        palimpsest("undo", "--lineage", lineage_of_four)
    get_settings.cache_clear()
    assert f" by {name}: undo of entry" in palimpsest("history", "--lineage", lineage_of_four)
    palimpsest("dismiss", name)
    assert name not in palimpsest("people")
    assert "There is nobody called" in palimpsest("grant", name, "mugs", "owner", fails=True)


def test_history_and_undo(palimpsest: Say, lineage_of_four: str) -> None:
    last = palimpsest("history", "--lineage", lineage_of_four).splitlines()[-2]
    assert re.fullmatch(r"\S+  live 3 -> 4 by ada: sharper", last)
    assert "live is version 3" in palimpsest("undo", "--lineage", lineage_of_four, "--reason", "too sharp")
    assert "live 4 -> 3 by " in palimpsest("history", "--lineage", lineage_of_four)
    assert "no move" in palimpsest("undo", "--lineage", lineage_of_four, fails=True)


def test_an_overruled_move_is_told() -> None:
    entry = Entry(
        number=1,
        at="2026-01-02T03:04:05.000+00:00",
        action="overruled",
        alias="live",
        before=1,
        after=4,
        actor="unknown",
        reason="made in MLflow itself",
        via="found",
    )
    assert tell(entry) == (
        "2026-01-02T03:04:05  a move of live to 1 overruled, 4 stands, found later, by unknown: made in MLflow itself"
    )


def test_forget_says_what_must_be_submitted_again(palimpsest: Say, lineage_of_four: str) -> None:
    palimpsest("undo", "--lineage", lineage_of_four)
    said = palimpsest("forget", "c1", "--lineage", lineage_of_four)
    assert "live is version 1, which never knew <c1>" in said
    assert "submit their images again: <c2>" in said
    mend = f"`palimpsest forget c1 --delete --lineage {lineage_of_four}`"
    assert f"versions 2, 3, 4 still know it; {mend} deletes them, for good\n" in said
    assert "deleted versions: 2, 3, 4" in palimpsest("forget", "c1", "--delete", "--lineage", lineage_of_four)
    assert "the next concept begins anew" in palimpsest("forget", "c0", "--lineage", lineage_of_four)
    assert "No version of" in palimpsest("forget", "c9", "--lineage", lineage_of_four, fails=True)


def test_forget_knows_one_from_many(palimpsest: Say, lineage_of_four: str) -> None:
    palimpsest("undo", "--lineage", lineage_of_four)
    mend = f"`palimpsest forget c2 --delete --lineage {lineage_of_four}`"
    said = palimpsest("forget", "c2", "--lineage", lineage_of_four)
    assert f"\nversion 3 still knows it; {mend} deletes it, for good\n" in said


def test_delete_and_gc(palimpsest: Say, mlflow_client_of_directory: Mlflow, lineage_of_four: str) -> None:
    assert "versions learned on it: [3]" in palimpsest("delete", "2", "--lineage", lineage_of_four, fails=True)
    assert "would delete 0 abandoned versions: none" in palimpsest("gc", "--lineage", lineage_of_four)
    gc = ("gc", "--days", "0", "--lineage", lineage_of_four)
    assert "would delete 2 abandoned versions: 2, 3" in palimpsest(*gc)
    assert numbers(mlflow_client_of_directory, lineage_of_four) == [1, 2, 3, 4]
    assert "version 3 and its files are deleted" in palimpsest("delete", "3", "--lineage", lineage_of_four)
    assert "deleted 1 abandoned versions: 2" in palimpsest(*gc, "--delete")
    assert numbers(mlflow_client_of_directory, lineage_of_four) == [1, 4]


def test_a_person_is_told_for_whom_a_deletion_waits(
    settings: Settings, lineage_of_four: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PALIMPSEST_LEASE_SECONDS", "0.4")
    get_settings.cache_clear()
    open_store(settings).put(f"leases/{lineage_of_four}/000000000001", b'{"holder": "far:7", "beat": 3}')
    assert main(["delete", "3", "--lineage", lineage_of_four]) == 0
    assert "far:7 is at work on it. Waiting to see whether it lives: 0.4 s, ten minutes for" in capsys.readouterr().err


@pytest.fixture
def mlflow_client_of_directory(mlflow_server: Settings) -> Mlflow:
    from services.runs import Server

    return Server(mlflow_server.mlflow).client


def test_the_doctor_says_what_to_do_and_fails_on_a_fault(
    palimpsest: Say, settings: Settings, lineage_of_four: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The versions here are of a made-up base."""
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert f"`{lineage_of_four}` belongs to the base sha256:" in said.out
    assert "-> set PALIMPSEST_BASE back" in said.out
    assert re.search(r"ok +the store .* takes, keeps and deletes objects", said.out)
    assert re.search(r"^error: (1 thing is|\d+ things are) wrong\.$", said.err, re.MULTILINE), said.err


def test_what_needs_mlflow_to_be_down_says_so(palimpsest: Say, settings: Settings, tmp_path: Path) -> None:
    for command in (("backup", str(tmp_path / "b")), ("restore", str(tmp_path / "b")), ("upgrade",)):
        assert "stop it first (`palimpsest down`)" in palimpsest(*command, fails=True)
    assert "in the backend `embedded` already" in palimpsest("migrate", "--backend", "embedded", fails=True)


def test_env_is_for_a_shell(palimpsest: Say, settings: Settings) -> None:
    lines = palimpsest("env").splitlines()
    assert f"export PALIMPSEST_MLFLOW_PORT={settings.mlflow_port}" in lines
    assert all(re.fullmatch(r"export [A-Z0-9_]+=.*", line) for line in lines)
