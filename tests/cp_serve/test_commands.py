"""What `palimpsest` says of what the HTTP API answers, over a real one; Ray's job API alone is made up."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.cli import main
from services.client import Client
from services.methods import METHODS
from services.runs import Server
from services.settings import get_settings
from services.versions import TAG
from tests.cp_serve.conftest import Serving
from tests.cp_serve.versions import publish

SAMPLES = Path(__file__).parents[2] / "infra" / "samples" / "fox"
REASONS = ("<fox> is drawn too unlike its images", "<robot> is forgotten")
Say = Callable[..., tuple[str, str]]


@pytest.fixture
def palimpsest(api_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """Run a command; what it said, on both streams. The server, in this process, logs to the second one."""
    monkeypatch.setenv("PALIMPSEST_PUBLIC_URL", api_url)
    get_settings.cache_clear()

    def run(*words: str, exit_code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main(words) == exit_code
        said = capsys.readouterr()
        own = [line for line in said.err.splitlines() if line.startswith(("error: ", "warning: "))]
        return said.out, "\n".join(own)

    yield run
    get_settings.cache_clear()


@pytest.fixture
def lineage(serving: Serving) -> str:
    """One version, which the gate refused; none is live."""
    name = f"l{uuid4().hex[:8]}"
    publish(serving.registry, name, serving.denoiser.base, serving.adapters[1], live=False, passed=False)
    client = Server(serving.settings.mlflow).client
    client.set_model_version_tag(name, "1", f"{TAG}gate_reasons", json.dumps(REASONS))
    return name


def learning(monkeypatch: pytest.MonkeyPatch, lineage: str, *, live: bool, version: int = 1) -> list[str]:
    """A `palimpsest learn` whose job makes a version."""
    ended = {"status": "succeeded", "lineage": lineage, "version": version, "live": live, "error": None}

    def learn(*_: object, **__: object) -> dict[str, Any]:
        return {"job_id": "learn-1", "findings": []}

    def follow_job(*_: object) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "job.finished", ended

    monkeypatch.setattr(Client, "learn", learn)
    monkeypatch.setattr(Client, "follow_job", follow_job)
    return ["learn", "fox", str(SAMPLES), "--noun", "fox", "--lineage", lineage]


def test_a_version_that_the_gate_refused_is_no_success(
    palimpsest: Say, lineage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = palimpsest(*learning(monkeypatch, lineage, live=False), exit_code=1)
    assert "learned:" not in out
    assert err == (
        f"error: <fox> was learned as {lineage}@1, but not made live: {'; '.join(REASONS)}. "
        f'Look at it: `palimpsest generate "a photo of a <fox>" --lineage {lineage}@1`; '
        f"or make it live: `palimpsest promote 1 --lineage {lineage}`."
    )


def test_the_way_to_look_at_it_and_to_make_it_live_works(palimpsest: Say, lineage: str, tmp_path: Path) -> None:
    out, _ = palimpsest("generate", "a <fox>", "--lineage", f"{lineage}@1", "--seed", "1", "-o", str(tmp_path))
    assert f"(drawn by {lineage}@1)" in out
    out, err = palimpsest("promote", "1", "--lineage", lineage)
    assert out == f"{lineage}: live is version 1 (was none)\n"
    assert err == f"warning: version 1 did not pass its gate: {'; '.join(REASONS)}"


def test_what_passed_is_promoted_without_a_word_more(palimpsest: Say, serving: Serving, lineage: str) -> None:
    publish(serving.registry, lineage, serving.denoiser.base, serving.adapters[2], live=False)
    assert palimpsest("promote", "2", "--lineage", lineage) == (f"{lineage}: live is version 2 (was none)\n", "")


def test_what_is_live_is_tried_in_its_lineage(palimpsest: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = 'palimpsest generate "a photo of a <fox>"'
    out, err = palimpsest(*learning(monkeypatch, "pets", live=True, version=2))
    assert out.splitlines()[-1] == f"learned: <fox> is in pets@2. Try: {draw} --lineage pets"
    assert err == ""
    out, _ = palimpsest(*learning(monkeypatch, "default", live=True))
    assert out.splitlines()[-1] == f"learned: <fox> is in default@1. Try: {draw}"


def test_what_passed_and_is_not_live_is_said_to_be_so(palimpsest: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent went meanwhile, or it was learned before and rolled back."""
    out, _ = palimpsest(*learning(monkeypatch, "pets", live=False))
    assert "learned: <fox> is in pets@1, which is not live. Look at it: `palimpsest generate" in out


def test_a_lineage_without_a_live_version_and_one_that_is_not(palimpsest: Say, lineage: str) -> None:
    _, err = palimpsest("generate", "a <fox>", "--lineage", lineage, exit_code=1)
    assert f"No version of `{lineage}` is live: `palimpsest promote N --lineage {lineage}` makes one live" in err
    _, err = palimpsest("generate", "a <fox>", exit_code=1)
    assert err.startswith("error: There is no lineage `default`: a first concept makes it, and `palimpsest lineages` ")


def test_a_folder_is_named_as_it_was_given(palimpsest: Say, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, says in (("empty", "There are no files in '{}'"), ("none", "'{}' cannot be read (No such file")):
        _, err = palimpsest("learn", "fox", str(tmp_path / folder), "--noun", "fox", exit_code=1)
        assert err.startswith(f"error: {says.format(tmp_path / folder)}")


def test_help_names_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["learn", "--help"])
    assert ", ".join(METHODS) in " ".join(capsys.readouterr().out.split())
