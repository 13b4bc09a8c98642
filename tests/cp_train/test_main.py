"""The job's command line: what can be refused is refused in one line that says what to do, before anything starts."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cp_train.job
from cp_train.__main__ import _SETTINGS, _Setting, main
from cp_train.plan import LearningConfig
from cp_train.request import Outcome, Request
from services.lease import take_place
from services.lineage import Verdict
from services.objects import open_store
from services.settings import get_settings
from tests.house import PATIENCE
from tests.ports import free_ports

SAMPLES = Path(__file__).parents[2] / "infra" / "samples" / "fox"
RIGHT = {"--lineage": "ann", "--concept": "fox", "--noun": "fox", "--images": str(SAMPLES)}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of a house in which no server runs."""
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PALIMPSEST_MLFLOW_PORT", str(free_ports(1)[0]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def refusal(capsys: pytest.CaptureFixture[str], *extra: str, **changes: str | None) -> str:
    """Run the job with some flags changed (None: left out); the one line it says."""
    flags = RIGHT | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    arguments = [text for flag, value in flags.items() if value is not None for text in (flag, value)]
    assert main([*arguments, *extra]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    return shown.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("flag", ["lineage", "concept", "images"])
def test_a_flag_that_is_missing_is_named(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    found = refusal(capsys, **{flag: None})
    assert f"--{flag}" in found
    assert found.endswith("see `python -m cp_train --help`.")


def test_a_flag_that_there_is_not_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--stepz 3" in refusal(capsys, "--stepz", "3")
    assert "unrecognized arguments: a b" in refusal(capsys, "a\nb")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": "many"}, "argument --steps: invalid int value: 'many'"),
        ({"steps": "0"}, "steps and batch size must be at least 1"),
        ({"batch_size": "0"}, "steps and batch size must be at least 1"),
        ({"lr": "0"}, "learning rates must be above 0"),
        ({"lr": "nan"}, "learning rates must be above 0"),
        ({"token_lr": "-1"}, "learning rates must be above 0"),
        ({"rank": "0"}, "rank must be from 1 to 1024"),
        ({"rank": "4096"}, "rank must be from 1 to 1024"),
        ({"weight": "-3"}, "weight must be at least 0"),
        ({"seed": "-1"}, "seed must be from 0 to"),
        ({"fisher_batches": "0"}, "batches, batch_size, trials must be at least 1"),
        ({"method": "magic"}, "method: there is no 'magic'; choose one of ewc_dc_kv, "),
        ({"method": "clora"}, "method: clora is for the benchmark only, for its adapter grows with every concept"),
        ({"method": "joint"}, "method: joint is for the benchmark only, for it needs the images of every earlier"),
        ({"precision": "half"}, "precision must be float32 or bfloat16"),
        ({"tau": "0"}, "tau above 0"),
        ({"trials": "0"}, "trials must be at least 1"),
        ({"method": "kv", "kv_weight": "-1"}, "kv: the weight must be at least 0"),
        ({"method": "kv", "kv_prompts": "0"}, "kv: at least 1 prompt"),
        ({"method": "dsc", "dsc_steps": "0"}, "DSC: steps and pool must be at least 1"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(
    capsys: pytest.CaptureFixture[str], changes: dict[str, str], said: str
) -> None:
    assert said in refusal(capsys, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lineage": "Ann"}, "lineage: 'Ann' is not a name; use a lower-case letter"),
        ({"lineage": "base"}, "lineage: `base` is reserved; use "),
        ({"concept": "my fox"}, "concept: 'my fox' is not a name; use a lower-case letter"),
        ({"concept": "<fox>"}, "concept: '<fox>' is not a name; use "),
        ({"noun": "very " * 40}, "tokens, but this base's text encoder takes 22; shorten it"),
        ({"noun": "<dog>"}, "noun: give plain words"),
        ({"base": "embeded"}, "base: 'embeded' is no pipeline (a directory with a model_index.json, a hub id"),
        ({"base": "/nowhere"}, "base: '/nowhere' is no pipeline"),
    ],
)
def test_a_name_noun_or_base_that_cannot_be_taken_is_refused(
    capsys: pytest.CaptureFixture[str], changes: dict[str, str], said: str
) -> None:
    assert said in refusal(capsys, **changes)


def test_a_folder_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = refusal(capsys, images=str(tmp_path / "nowhere"))
    assert found.startswith(
        f"'{tmp_path}/nowhere' cannot be read (No such file or directory): images come from a directory, "
    )


def test_a_folder_without_pictures_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert "image" in refusal(capsys, images=str(folder))
    (folder / "a.png").write_bytes(b"no picture")
    assert "'a.png' is not a PNG, JPEG or WebP picture" in refusal(capsys, images=str(folder))


@pytest.mark.parametrize("changes", [{"method": "magic"}, {"steps": "0"}, {"actor": "No Name"}, {"noun": "<dog>"}])
def test_who_is_refused_holds_up_nobody_behind(capsys: pytest.CaptureFixture[str], changes: dict[str, str]) -> None:
    """A place in the lineage's queue would be kept for ten minutes."""
    store = open_store(get_settings())
    refusal(capsys, place=str(take_place(store, "ann", holder="a job")), **changes)
    assert list(store.list("leases/")) == []


def test_more_workers_than_images_in_a_batch_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_TRAIN_WORKERS", "3")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # as in a job of a cluster
    assert "batch size 2 is less than one image for each of 3" in refusal(capsys, batch_size="2")


def test_a_wrong_environment_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_THREADS", "all")
    assert refusal(capsys).startswith("PALIMPSEST_THREADS: ")


def test_a_setting_that_the_method_does_not_read_is_named_in_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "finetune", "--weight", "3", "--kv-weight", "1", "--dsc-steps", "2", "--lineage", "Ann"]
    assert main([*(text for pair in RIGHT.items() for text in pair), *flags]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "is ignored" in line] == said[:-1]
    for flag, line in zip(("--kv-weight", "--dsc-steps", "--weight"), said, strict=False):
        assert f"{flag} is ignored: method finetune does not read it" in line


def requested(monkeypatch: pytest.MonkeyPatch, *extra: str) -> Request:
    """What the job is asked for by some flags beside the right ones."""
    asked: list[Request] = []

    def learn(request: Request, _: object) -> Outcome:
        asked.append(request)
        return Outcome(request.lineage, 1, None, "run", "sha256:0", Verdict(passed=True), live=True)

    monkeypatch.setattr(cp_train.job, "learn", learn)
    assert main([*(text for pair in RIGHT.items() for text in pair), *extra]) == 0
    return asked[0]


def field_of(config: LearningConfig, setting: _Setting) -> object:
    return getattr(getattr(config, setting.part) if setting.part else config, setting.field)


def test_every_flag_sets_its_own_setting_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ["--method", "dsc_ewc_dc_kv"]  # which reads them all
    plain = requested(monkeypatch, *method).config
    assert len({setting.flag for setting in _SETTINGS}) == len(_SETTINGS)
    for setting in _SETTINGS:
        default = field_of(plain, setting)
        other = "bfloat16" if isinstance(default, str) else type(default)(default + 1)  # type: ignore[operator]
        config = requested(monkeypatch, *method, setting.flag, str(other)).config
        changed = {
            one.flag: field_of(config, one) for one in _SETTINGS if field_of(config, one) != field_of(plain, one)
        }
        assert changed == {setting.flag: other}


def test_the_other_flags_reach_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    found = requested(monkeypatch)
    assert (found.lineage, found.concept, found.noun, found.images) == tuple(RIGHT.values())
    assert (found.base, found.again, found.actor, found.place) == ("embedded", False, "", None)
    assert (found.config.method, found.config.weight, found.config.fisher.contrast) == ("ewc_dc_kv", 0.001, 1.0)
    flags = ("--base", "there", "--again", "--actor", "ann", "--place", "3", "--method", "ewc", "--weight", "0.5")
    found = requested(monkeypatch, *flags)
    assert (found.base, found.again, found.actor, found.place) == ("there", True, "ann", 3)
    assert (found.config.method, found.config.weight, found.config.fisher.contrast) == ("ewc", 0.5, 0.0)


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    others = ("--lineage", "--concept", "--images", "--noun", "--method", "--base", "--weight", "--again")
    assert all(f"{flag} " in shown for flag in (*others, *(setting.flag for setting in _SETTINGS)))


def test_the_module_exits_with_that_code_and_line() -> None:
    done = subprocess.run([sys.executable, "-m", "cp_train", "--lineage", "ann"], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().startswith(
        "error: the following arguments are required: --concept, --noun, --images; see "
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("code", [0, 1])
def test_the_process_ends_whatever_waits_at_its_exit(code: int) -> None:
    hanging = "import atexit, threading; atexit.register(threading.Event().wait)"
    script = f"{hanging}; from cp_train.__main__ import leave; leave({code}, seconds=0.1)"
    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE, check=False).returncode == code
