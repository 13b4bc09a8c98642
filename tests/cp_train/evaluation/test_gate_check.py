"""The script that measures the gate: what it writes, that it goes on, and what it concludes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cp_train.evaluation import gate_check
from cp_train.evaluation.gate_report import FIGURES, HONEST, KINDS, Table, Update, propose, write_report
from services.lineage import Verdict
from services.settings import Settings, get_settings

GOOD = {
    "drift.fox.kv": 0.1,
    "drift.mug.kv": 0.2,
    "drift.fox.mmd": 5.0,
    "drift.fox.similarity": 0.98,
    "drift.fox.dc_drop": 0.0,
    "base_drift.kv": 0.3,
    "base_drift.mmd": 40.0,
    "base_drift.similarity": 0.9,
    "new.similarity": 0.8,
    "new.loss": 0.9,
}


def update(chain: int = 0, kind: str = HONEST, *, passed: bool = True, **changes: float) -> Update:
    metrics = GOOD | {name.replace("__", "."): value for name, value in changes.items()}
    verdict = Verdict(passed=passed, reasons=() if passed else ("a, b",))
    return Update.of(chain=chain, kind=kind, concept="cup", earlier=2, verdict=verdict, metrics=metrics, seconds=1.5)


def test_an_update_keeps_the_worst_of_each_figure() -> None:
    made = update()
    assert [made.figure(figure) for figure in FIGURES] == [0.2, 5.0, 0.98, 0.0, 0.3, 40.0, 0.9, 0.8, 0.9]
    assert update(drift__mug__similarity=0.1).similarity == 0.1
    assert update(drift__mug__mmd=math.nan).mmd == math.inf, "no number is as bad as can be"
    first = Update.of(
        chain=0, kind=HONEST, concept="cup", earlier=0, verdict=Verdict(True), metrics={"new.loss": 0.5}, seconds=1.0
    )
    assert math.isnan(first.kv)


def test_a_table_gives_back_what_was_written(tmp_path: Path) -> None:
    table = Table(tmp_path / "updates.csv")
    assert table.read() == []
    made = [update(), update(kind=KINDS[1], passed=False, drift__fox__mmd=1234.5678)]
    table.append(made)
    table.append([update(1)])
    assert table.read() == [*made, update(1)]


def test_limits_come_from_the_even_chains_and_are_reported_on_the_odd_ones() -> None:
    updates = [update(0), update(0, drift__fox__mmd=100.0, drift__fox__similarity=0.9), update(1, drift__fox__mmd=1e6)]
    updates.append(update(1, KINDS[0], passed=False, drift__fox__mmd=500.0))
    limits = propose(updates)
    assert limits["mmd"] == pytest.approx(150)
    assert limits["similarity"] == pytest.approx(0.85)
    assert limits["kv"] == pytest.approx(0.3)
    assert [made.passes(limits) for made in updates] == [True, True, False, False]
    page = write_report(updates, Settings())
    assert "4 of 4 verdicts are right" in page
    assert "PALIMPSEST_GATE_MMD=150\n" in page
    assert f"| {HONEST} | odd, which report | 1 | 0 | 0 |" in page
    assert f"| {KINDS[0]} | odd, which report | 1 | 1 | 0 |" in page, "the settings' limit would have let it pass"


def test_what_was_not_sound_passes_no_limits() -> None:
    unsound = Update.of(
        chain=1, kind=KINDS[0], concept="cup", earlier=1, verdict=Verdict(False), metrics={}, seconds=1.0
    )
    assert not unsound.passes(propose([update()]))


def test_a_wrong_verdict_is_said() -> None:
    page = write_report([update(passed=False), update(kind=KINDS[0])], Settings())
    assert "0 of 2 verdicts are right" in page
    assert page.count("**wrong**") == 2


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number, name in enumerate(("mug", "fox", "cup")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for shade in range(2):
            colour = (40 * number, 200 - 60 * number, 90 * shade)
            Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / name / f"{shade}.png")
    return tmp_path / "pictures"


def test_the_command_learns_judges_writes_and_goes_on(
    tiny_folders: Mapping[str, Path],
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a random base that draws nothing; every stage is real."""
    monkeypatch.setenv("PALIMPSEST_DEVICE", "cpu")
    monkeypatch.setenv("PALIMPSEST_THREADS", "1")
    get_settings.cache_clear()
    output = tmp_path / "out"
    command = ["-o", str(output), "--base", str(tiny_folders["epsilon"]), "--images", str(folders), "--steps", "2"]
    command += ["--fisher-batches", "1", "--honest", "3", "--catastrophic", "2", "--length", "2"]
    gate_check.main(command)
    get_settings.cache_clear()
    updates = Table(output / "updates.csv").read()
    assert [(u.chain, u.kind, u.earlier) for u in updates] == [
        (0, HONEST, 0),
        (0, HONEST, 1),
        (0, KINDS[0], 1),
        (1, HONEST, 0),
        (1, KINDS[1], 0),
    ]
    whole = (output / "gate.md").read_text()
    capsys.readouterr()
    Table(output / "updates.csv").path.write_text("".join((output / "updates.csv").read_text().splitlines(True)[:4]))
    gate_check.main(command)
    said = capsys.readouterr().out
    assert said.count(" after ") == 2, "the chain that was written is not learned again"
    again = Table(output / "updates.csv").read()
    timeless = [[repr(replace(update, seconds=0.0)) for update in made] for made in (again, updates)]  # NaN is not NaN
    assert timeless[0] == timeless[1]
    assert whole.splitlines()[:20] == (output / "gate.md").read_text().splitlines()[:20]


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_check.main(["-o", str(tmp_path), "--honest", "0"]) == 1
    assert capsys.readouterr().err == "error: Give at least one honest update, and chains of at least one concept.\n"
