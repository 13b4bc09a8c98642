"""A job killed with SIGKILL at each of its stages, and submitted again, leaves exactly one version.

Everything is real but the learning itself: MLflow, store, lease, intake, and the death of the process.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

import cp_train.job
from cp_train.job import Request, learn
from cp_train.plan import LearningConfig, Plan
from cp_train.task import Learned
from services.base_model import BaseModel
from services.errors import InputError, NotFoundError, RefusedError, UnavailableError
from services.intake import Intake
from services.lease import take_place
from services.lineage import CANDIDATE, LIVE, Registry, Verdict
from services.objects import open_store
from services.retention import Retention
from services.runs import Server
from services.settings import Settings
from tests.cp_train.made_up import made_up
from tests.killed import killed, mortal
from tests.lineages import numbers
from tests.proxy import Proxy

SAMPLES = Path(__file__).parents[2] / "infra" / "samples" / "fox"
STAGES = [
    "before put intake/.*/manifest",
    "after create leases/.*/0*1$",
    "after create_run",
    "before learning",
    "after learning",
    "after put mlflow/.*/adapter.safetensors",
    "after put mlflow/.*/manifest.json",
    "after create_registered_model",
    "before create_model_version",
    "after create_model_version",
    "after create audit/.*/0*1.json",
    "after set_registered_model_alias .*candidate",
    "after create audit/.*/0*2.json",
    "after set_registered_model_alias .*live",
    "after set_registered_model_tag .*recorded.live",
    "after set_model_version_tag .*promoted ",
    "after delete_registered_model_alias .*candidate",
    "after delete intake/.*png",
    "after set_terminated",
]


@pytest.fixture
def settings(mlflow_server: Settings) -> Settings:
    return mlflow_server.model_copy(update={"lease_seconds": 0.4})


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch, tiny_base: BaseModel, own_folder: Path) -> Callable[[str], Request]:
    """Requests for one concept on a tiny base, whose learning is made up."""
    monkeypatch.setattr(cp_train.job, "train", made_up(tiny_base))
    config = LearningConfig.for_method("ewc_dc")
    return lambda lineage: Request(
        lineage=lineage, concept="fox", noun="fox", images=str(SAMPLES), base=str(own_folder), config=config
    )


def killed_job(stage: str, request: Request, settings: Settings) -> None:
    """Run a job in a process that dies at a stage, of which learning is another."""

    def job() -> None:
        cp_train.job.train = mortal(stage, cp_train.job.train, lambda *_: "learning")
        learn(request, settings)

    killed(stage, job)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_submitted_again(settings: Settings, request_of: Callable[[str], Request], stage: str) -> None:
    lineage = f"l{uuid4().hex[:12]}"
    request = request_of(lineage)
    killed_job(stage, request, settings)
    outcome = learn(request, settings)
    assert (outcome.version, outcome.parent, outcome.live) == (1, None, True)
    store = open_store(settings)
    registry = Registry(settings, store)
    registry.verify(lineage, 1)
    assert registry.aliases(lineage) == {LIVE: 1}
    assert numbers(Server(settings.mlflow).client, lineage) == [1]
    assert learn(request, settings) == outcome
    assert {move.after for move in registry.history(lineage) if move.alias == LIVE} == {1}

    for weeks in (2, 4):  # what has no manifest is marked first
        Intake(store, settings).expire(time.time() + weeks * 7 * 86400)
    assert list(store.list("intake/")) == []


@pytest.mark.parametrize("stage", ["after create leases/.*/queue/", "before learning", "after set_terminated"])
def test_what_a_killed_job_held_is_free_for_who_deletes(
    settings: Settings, request_of: Callable[[str], Request], stage: str
) -> None:
    """Whatever it held, its place in the queue or the lease: no other job must learn first."""
    lineage, said = f"l{uuid4().hex[:12]}", list[str]()
    request = request_of(lineage)
    learn(request, settings)
    killed_job(stage, replace(request, concept="mug", images=str(SAMPLES.with_name("robot"))), settings)
    store = open_store(settings)
    keeper = Retention(settings, store, said.append)
    assert 1 in keeper.forget(lineage, "fox", delete=True).deleted
    assert keeper.versions(lineage) == []
    assert ["is at work on it. Waiting to see whether it lives" in line for line in said] == [True]
    for weeks in (2, 4):  # what has no manifest is marked first
        Intake(store, settings).expire(time.time() + weeks * 7 * 86400)
    assert list(store.list("intake/")) == []


def test_an_outage_after_learning_is_waited_out(
    settings: Settings,
    request_of: Callable[[str], Request],
    monkeypatch: pytest.MonkeyPatch,
    mlflow_server: Settings,
) -> None:
    """MLflow goes away while the job learns, and is back only once the job waits for it."""
    honest = cp_train.job.train
    with Proxy(mlflow_server.mlflow) as network:
        said = logging.getLogger("palimpsest.job").warning

        def learned(plan: Plan, there: Settings) -> Learned:
            network.down()
            return honest(plan, there)

        def warned(line: str, *values: object) -> None:
            if line.startswith("waiting for at most"):
                network.up()
            said(line, *values)

        monkeypatch.setattr(cp_train.job, "train", learned)
        monkeypatch.setattr(cp_train.job.log, "warning", warned)
        outcome = learn(
            request_of(f"l{uuid4().hex[:12]}"), settings.model_copy(update={"mlflow_uri": network.endpoint})
        )
    assert (outcome.version, outcome.live) == (1, True)


def test_an_outage_that_does_not_end_is_an_error_and_the_same_again_learns(
    settings: Settings, request_of: Callable[[str], Request], monkeypatch: pytest.MonkeyPatch, mlflow_server: Settings
) -> None:
    honest, request = cp_train.job.train, request_of(f"l{uuid4().hex[:12]}")
    with Proxy(mlflow_server.mlflow) as network:

        def learned(plan: Plan, there: Settings) -> Learned:
            network.down()
            return honest(plan, there)

        monkeypatch.setattr(cp_train.job, "train", learned)
        far = settings.model_copy(update={"mlflow_uri": network.endpoint, "outage_seconds": 0.0})
        with pytest.raises(UnavailableError):
            learn(request, far)
    monkeypatch.setattr(cp_train.job, "train", honest)
    assert learn(request, settings).version == 1


def test_a_job_that_lost_its_lease_leaves_its_successors_checkpoints(
    settings: Settings, request_of: Callable[[str], Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, store = request_of(f"l{uuid4().hex[:12]}"), open_store(settings)

    def learned(plan: Plan, _: Settings) -> Learned:
        for run_id in (plan.run_id, "successor"):
            store.put(f"training/{plan.lineage}/{run_id}/checkpoint", b"half learned")
        raise UnavailableError("it slept for too long")

    monkeypatch.setattr(cp_train.job, "train", learned)
    with pytest.raises(UnavailableError):
        learn(request, settings)
    assert list(store.list(f"training/{request.lineage}/")) == [f"training/{request.lineage}/successor/checkpoint"]


def test_a_lineage_is_not_learned_on_with_another_base(
    settings: Settings, request_of: Callable[[str], Request], tiny_folders: Mapping[str, Path]
) -> None:
    """Nor begun anew on one, for its versions could come back; nothing is left of the try."""
    request = request_of(f"l{uuid4().hex[:12]}")
    learn(request, settings)
    store = open_store(settings)
    registry = Registry(settings, store)
    other = replace(request, concept="mug", base=str(tiny_folders["v_prediction"]))
    for _ in range(2):
        with pytest.raises(RefusedError, match="belongs to another base model"):
            learn(other, settings)
        registry.clear_live(request.lineage)
    assert numbers(Server(settings.mlflow).client, request.lineage) == [1]
    assert list(store.list("intake/")) == []


def test_a_job_takes_up_its_place_or_gives_it_up(settings: Settings, request_of: Callable[[str], Request]) -> None:
    lineage, store = f"l{uuid4().hex[:12]}", open_store(settings)
    places = [take_place(store, lineage, holder=f"job-{number}") for number in range(2)]
    request = replace(request_of(lineage), place=places[0])
    with pytest.raises(InputError):
        learn(replace(request, images="ftp://nowhere"), settings)
    assert len(list(store.list(f"leases/{lineage}/queue/"))) == 1, "those behind do not wait for it"
    assert learn(replace(request, place=places[1]), settings).version == 1
    assert list(store.list(f"leases/{lineage}/queue/")) == []


def test_pictures_are_kept_with_a_version_unless_they_are_not_wanted(
    settings: Settings, request_of: Callable[[str], Request]
) -> None:
    store = open_store(settings)
    for wanted in (True, False):
        lineage = f"l{uuid4().hex[:12]}"
        outcome = learn(request_of(lineage), settings.model_copy(update={"samples": wanted}))
        kept = [key for key in store.list("mlflow/") if outcome.run_id in key and "/samples/" in key]
        assert bool(kept) == wanted
        page = Server(settings.mlflow).client.get_model_version(lineage, "1").description
        assert ("get-artifact" in page) == wanted


def test_the_images_of_a_refused_concept_stay_for_another_try(
    settings: Settings, request_of: Callable[[str], Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(f"l{uuid4().hex[:12]}")
    honest = cp_train.job.train
    refused = Verdict(passed=False, reasons=("<fox> was not learned: relative error 2, at most 1",))
    monkeypatch.setattr(cp_train.job, "train", lambda *args: replace(honest(*args), verdict=refused))
    outcome = learn(request, settings)
    assert (outcome.gate, outcome.live) == (refused, False)
    store = open_store(settings)
    registry = Registry(settings, store)
    version = registry.version(request.lineage, 1)
    assert (version.gate_passed, version.gate_reasons) == (False, refused.reasons)
    assert registry.aliases(request.lineage) == {CANDIDATE: 1}
    held = sorted(store.list("intake/"))
    assert learn(request, settings) == outcome, "the same again is refused as before"
    assert sorted(store.list("intake/")) == held, "and its images are held once"

    monkeypatch.setattr(cp_train.job, "train", honest)
    again = replace(request, images=version.intake, config=LearningConfig.for_method("ewc"))
    outcome = learn(again, settings)
    assert (outcome.version, outcome.gate.passed, outcome.live) == (2, True, True)
    with pytest.raises(NotFoundError):
        Intake(store, settings).digest(version.intake)
