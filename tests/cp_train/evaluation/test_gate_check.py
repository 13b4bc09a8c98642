"""The script that measures the gate: what it writes, that it goes on, and what it concludes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cp_train.evaluation import gate_check
from cp_train.evaluation.gate_report import FIGURES, HONEST, KINDS, Table, Update, limits_of, propose, write_report
from cp_train.plan import LearningConfig
from services.base_model import BaseModel
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


OWN = limits_of(Settings())


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
    page = write_report(updates, OWN)
    assert "2 of 4 verdicts are right" in page
    assert "PALIMPSEST_GATE_MMD=150\n" in page
    assert f"| {HONEST} | odd, which report | 1 | 0 | 0 |" in page
    assert f"| {KINDS[0]} | odd, which report | 1 | 1 | 0 |" in page, "the settings' limit would have let it pass"


def test_what_was_not_sound_passes_no_limits() -> None:
    unsound = Update.of(
        chain=1, kind=KINDS[0], concept="cup", earlier=1, verdict=Verdict(False), metrics={}, seconds=1.0
    )
    assert not unsound.passes(propose([update()]))


def test_a_wrong_verdict_is_said() -> None:
    updates = [update(drift__fox__mmd=OWN["mmd"] + 100), update(kind=KINDS[0])]
    page = write_report(updates, OWN)
    assert "0 of 2 verdicts are right" in page
    assert page.count("**wrong**") == 2
    assert "1 of 2 verdicts are right" in write_report(updates, OWN | {"mmd": OWN["mmd"] + 200}), (
        "other limits, nothing learned"
    )


@pytest.mark.parametrize(("honest", "catastrophic", "length"), [(20, 12, 5), (4, 8, 2), (9, 12, 3), (5, 4, 5)])
def test_updates_of_every_place_are_spoiled_in_both_ways(
    tiny_base: BaseModel, honest: int, catastrophic: int, length: int
) -> None:
    config = LearningConfig.for_method("ewc_dc")
    counts = {"honest": honest, "spoiled": catastrophic, "length": length}
    wanted = gate_check.Check(base=tiny_base, settings=Settings(), config=config, **counts)
    ways = [wanted.kinds(chain) for chain in range(wanted.chains)]
    assert sum(len(kinds) for chain in ways for kinds in chain) == catastrophic
    assert all(len(set(kinds)) == len(kinds) for chain in ways for kinds in chain), "no update is tried twice"
    for half in (ways[0::2], ways[1::2]):
        firsts = {kind for chain in half for kind in chain[0]}
        assert len(half) < 2 or firsts == set(KINDS), "a first version, too"


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
    command += ["--fisher-batches", "1", "--honest", "3", "--catastrophic", "4", "--length", "2"]
    gate_check.main(command)
    get_settings.cache_clear()
    updates = Table(output / "updates.csv").read()
    assert [(u.chain, u.kind, u.earlier) for u in updates] == [
        (0, HONEST, 0),
        (0, KINDS[0], 0),
        (0, HONEST, 1),
        (0, KINDS[1], 1),
        (1, HONEST, 0),
        (1, KINDS[0], 0),
        (1, KINDS[1], 0),
    ]
    assert [u.passes(OWN) for u in updates] == [u.passed for u in updates], "the report judges as the gate does"
    whole = (output / "gate.md").read_text()
    capsys.readouterr()
    Table(output / "updates.csv").path.write_text("".join((output / "updates.csv").read_text().splitlines(True)[:5]))
    gate_check.main(command)
    said = capsys.readouterr().out
    assert said.count(" after ") == 3, "the chain that was written is not learned again"
    again = Table(output / "updates.csv").read()
    timeless = [[repr(replace(update, seconds=0.0)) for update in made] for made in (again, updates)]  # NaN is not NaN
    assert timeless[0] == timeless[1]
    assert whole.splitlines()[:20] == (output / "gate.md").read_text().splitlines()[:20]
    assert gate_check.main([*command, "--steps", "3"]) == 1
    assert "has updates of other settings" in capsys.readouterr().err


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_check.main(["-o", str(tmp_path), "--honest", "0"]) == 1
    assert capsys.readouterr().err == "error: Give at least one honest update, and chains of at least one concept.\n"
