"""Many jobs on one lineage at once, on the real registry, store and lease; only the learning itself is made up."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

import cp_train.job
from cp_train.job import Outcome, Request, learn
from cp_train.plan import LearningConfig
from services.base_model import BaseModel
from services.images import check_images
from services.intake import Intake
from services.lease import take_place
from services.lineage import LIVE, Registry
from services.objects import ObjectStore
from services.settings import Settings
from tests.cp_train.made_up import made_up

PICTURE = Path(__file__).parents[2] / "infra" / "samples" / "fox" / "fox-flat.png"
NAMES = [f"thing-{number}" for number in range(20)]
REFUSED = {NAMES[3], NAMES[11]}


@pytest.mark.timeout(1800)
def test_20_submissions_at_once_end_as_one_chain_in_order_of_submission(
    stack_settings: Settings,
    stack_store: ObjectStore,
    lineage: str,
    tiny_base: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that the gate refuses stand beside it."""
    monkeypatch.setattr(cp_train.job, "train", made_up(tiny_base, refused=REFUSED))
    settings = stack_settings.model_copy(update={"lease_seconds": 60.0})
    intake, ready = Intake(stack_store, settings), threading.Barrier(len(NAMES))

    def submitted(name: str) -> Request:
        """As the HTTP API does."""
        return Request(
            lineage=lineage,
            concept=name,
            noun="fox",
            images=intake.hold(check_images([(PICTURE.name, PICTURE.read_bytes())], settings)),
            base=tiny_base.ref.id,
            config=LearningConfig.for_method("ewc_dc"),
            place=take_place(stack_store, lineage, holder=name),
        )

    def job(request: Request) -> Outcome:
        ready.wait()
        return learn(request, settings)

    requests = [submitted(name) for name in NAMES]
    with ThreadPoolExecutor(len(NAMES)) as pool:
        outcomes = list(pool.map(job, requests))
    assert [outcome.version for outcome in outcomes] == list(range(1, len(NAMES) + 1))
    assert [outcome.live for outcome in outcomes] == [name not in REFUSED for name in NAMES]
    registry = Registry(settings, stack_store)
    chain: list[int | None] = [None]
    known: list[str] = []
    for name, outcome in zip(NAMES, outcomes, strict=True):
        assert outcome.parent == chain[-1]
        assert registry.version(lineage, outcome.version).concepts == (*known, name)
        if name not in REFUSED:
            chain.append(outcome.version)
            known.append(name)
    assert registry.aliases(lineage)[LIVE] == chain[-1]
    moves = [(move.before, move.after, move.via) for move in registry.history(lineage) if move.alias == LIVE]
    assert moves == [(before, after, "job") for before, after in pairwise(chain)]
    assert not list(stack_store.list(f"leases/{lineage}/queue/"))

    held = {request.images for request in requests if list(stack_store.list(f"intake/{request.images}/"))}
    assert held == {request.images for request in requests if request.concept in REFUSED}, "for another try"
    for images in held:
        intake.release(images)
