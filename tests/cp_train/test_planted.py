"""An honest update of the embedded base and planted catastrophes, judged as a job's are, with the limits that ship."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cp_train.denoise import LoopConfig
from cp_train.evaluation.gate_check import shuffled, spoiled
from cp_train.fisher import FisherConfig
from cp_train.methods import DEFAULT
from cp_train.phase import Shard
from cp_train.plan import LearningConfig, Plan
from cp_train.task import Task
from services.adapter import Adapter, new_adapter
from services.base_model import BaseModel
from services.lineage import Verdict
from services.manifest import Concept
from services.settings import Settings

SAMPLES = Path(__file__).parents[2] / "infra" / "samples"
SHIPPED = Settings(samples=False)
CONFIG = LearningConfig.for_method(
    DEFAULT, loop=LoopConfig(steps=60, batch_size=4), fisher=FisherConfig(batches=2, batch_size=1)
)


def trained(base: BaseModel, name: str, config: LearningConfig, parent: Task | None = None) -> Task:
    """A concept that was learned, on top of another."""
    plan = Plan(
        lineage="ann",
        concept=Concept(name=name, noun=name),
        base=base.ref.id,
        base_ref=base.ref,
        intake_id="",
        config=config,
        parent=parent.adapter() if parent else new_adapter(base.layout, rank=config.rank, seed=0),
        fisher=parent.fisher_information() if parent else None,
        earlier=parent.plan.concepts if parent else (),
        run_id="",
    )
    images = [Image.open(path).convert("RGB") for path in sorted((SAMPLES / name).glob("*.png"))]
    task = Task(plan, base, images, shard=Shard(), wrap=lambda module: module)
    task.train(lambda *_: None, None)
    return task


def verdict(task: Task, adapter: Adapter) -> Verdict:
    return task.judged(adapter, task.fisher_information(), SHIPPED).verdict


def missed(found: Verdict, limits: list[str]) -> list[str]:
    """Those of some limits that are among the reasons."""
    return [limit for limit in limits if any(reason.startswith(limit) for reason in found.reasons)]


@pytest.fixture(scope="module")
def first(embedded_base: BaseModel) -> Task:
    return trained(embedded_base, "fox", CONFIG)


@pytest.fixture(scope="module")
def second(embedded_base: BaseModel, first: Task) -> Task:
    return trained(embedded_base, "robot", CONFIG, first)


def test_an_honest_update_passes(second: Task) -> None:
    assert verdict(second, second.adapter()) == Verdict(passed=True)


def test_shuffled_weights_are_refused_for_what_they_forgot_and_did_not_learn(second: Task) -> None:
    found = verdict(second, shuffled(second.adapter(), seed=0))
    assert not found.passed
    limits = ["<fox> changed: similarity", "<robot> is unlike its images: similarity"]
    assert missed(found, limits) == limits


def test_learning_rates_times_100_are_refused_for_what_is_left_of_the_concept_and_of_the_base(
    embedded_base: BaseModel, first: Task
) -> None:
    worse = spoiled(replace(CONFIG, loop=replace(CONFIG.loop, steps=20)))
    task = trained(embedded_base, "robot", worse, first)
    found = verdict(task, task.adapter())
    assert not found.passed
    whose, figures = ("<fox>", "the base's own knowledge"), ("keys and values by", "MMD", "similarity")
    limits = [f"{who} changed: {figure}" for who in whose for figure in figures]
    assert missed(found, limits) == limits
