"""Every mistake at the job's command line is one line that says what to do, and exit 1."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cp_train.__main__ import main
from services.settings import get_settings
from tests.house import SAMPLES, House, learning

ROBOT = str(SAMPLES / "robot")


@pytest.fixture
def at_home(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """This process at the house's terminal: the job's own `main`, without ten seconds of imports for each mistake."""
    for name, value in house.settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    get_settings.cache_clear()
    yield house
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--lineage", "Pets"), "lineage: 'Pets' is not a name"),
        (("--lineage", "base"), "`base` is reserved"),
        (("--concept", "my mug"), "concept: 'my mug' is not a name"),
        (("--method", "magic"), "method: there is no 'magic'; choose one of ewc_dc_kv, ewc_dc, ewc, dsc"),
        (("--images", "/no/such/folder"), "folder"),
        (("--images", "ftp://somewhere/else"), "Images come from a directory, s3://bucket/prefix or an intake id"),
        (("--images", "in-" + "0" * 32), "in-"),
        (("--base", "/no/such/base"), "base: '/no/such/base' is no pipeline"),
        (("--steps", "0"), "steps"),
        (("--steps", "many"), "invalid int value: 'many'"),
        (("--noun", "a very long noun indeed " * 8), "noun: "),
        (("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_a_refused_job(at_home: House, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str) -> None:
    assert main([*learning("mistakes", "robot"), *flags]) == 1
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert says in line
    assert "Traceback" not in said
    assert "mistakes" not in at_home.registry.lineages()
    assert list(at_home.store.list("intake/")) == []


def test_a_refused_job_fails_at_the_job_cli_too(house: House) -> None:
    assert "method: there is no 'magic'" in house.learn("mistakes", "robot", "--method", "magic").error


def test_not_an_image(house: House, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    done = house.run("python", "-m", "cp_train", *learning("mistakes", "robot"), "--images", str(tmp_path))
    assert done.returncode == 1
    assert "notes.png" in done.stderr


def test_a_registry_that_does_not_answer(house: House) -> None:
    environment = ("env", "PALIMPSEST_MLFLOW_URI=http://127.0.0.1:9")
    done = house.run(*environment, "python", "-m", "cp_train", *learning("mistakes", "robot"))
    assert done.returncode == 1
    assert "MLflow at http://127.0.0.1:9" in done.stderr
    assert list(house.store.list("intake/")) == []
