"""One worker's whole work on a tiny base, in memory."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cp_train.denoise import LoopConfig
from cp_train.evaluation import evidence
from cp_train.evaluation.draw import draw
from cp_train.fisher import FisherConfig
from cp_train.methods import PRODUCT
from cp_train.methods.dsc import DSCConfig
from cp_train.methods.kv import KVConfig, protect
from cp_train.phase import Shard, State
from cp_train.plan import LearningConfig, Plan
from cp_train.prompts import concept_prompts
from cp_train.task import Learned, Task
from services.adapter import Adapter, TrainingState, decode, decode_state, file_refs
from services.base_model import BaseModel
from services.conditioning import tokenize
from services.errors import InputError
from services.lineage import Verdict
from services.manifest import STATE_FILE, Concept, Content
from services.settings import Settings
from tests.bases import plan_of, some_adapter

SAMPLES = sorted((Path(__file__).parents[2] / "infra" / "samples").glob("*/*.png"))[:3]
CONFIG = LearningConfig(
    method="ewc_dc",
    crops=1,
    loop=LoopConfig(steps=3, batch_size=2, warmup=1),
    fisher=FisherConfig(batches=2, batch_size=1),
)
LENIENT = Settings(
    gate_similarity=-1,
    gate_mmd=9e3,
    gate_base_similarity=-1,
    gate_base_mmd=9e3,
    gate_new_similarity=-1,
    gate_new_loss=2,
)
"""A random base learns nothing in three steps."""


def task_of(plan: Plan, base: BaseModel) -> Task:
    images = [Image.open(path).convert("RGB") for path in SAMPLES]
    return Task(plan, base, images, shard=Shard(), wrap=lambda module: module)


def ignore(*_: object) -> None:
    """A step's hook."""


def content_of(plan: Plan, learned: Learned) -> Content:
    return Content(
        lineage=plan.lineage,
        base=plan.base_ref,
        rank=plan.parent.rank,
        alpha=plan.parent.alpha,
        concepts=plan.concepts,
        files=file_refs(learned.files),
    )


@pytest.mark.parametrize("earlier", [0, 2])
def test_what_is_learned_can_be_published_and_continues_its_parent(any_base: BaseModel, earlier: int) -> None:
    plan = plan_of(any_base, CONFIG, earlier=earlier)
    task = task_of(plan, any_base)
    task.train(ignore, None)
    learned = task.finish(LENIENT)
    content = content_of(plan, learned)
    adapter = decode(content, any_base.layout, learned.files)
    assert list(adapter.tokens) == [concept.name for concept in plan.concepts]
    assert all(torch.equal(adapter.tokens[name], rows) for name, rows in plan.parent.tokens.items())
    assert not torch.equal(adapter.up_KR, plan.parent.up_KR)
    fisher = decode_state(content, any_base.layout, learned.files[STATE_FILE])
    mean = torch.cat([fisher.down_PRD.flatten(), fisher.up_KR.flatten()]).mean().item()
    assert mean == pytest.approx(2 if earlier else 1, rel=1e-3)  # this task's, and what was there
    assert learned.verdict.passed
    judged = {
        f"drift.c{n}.{what}" for n in range(earlier) for what in ("kv", "mmd", "similarity", "dc_accuracy", "dc_drop")
    }
    base = {"base_drift.kv", "base_drift.mmd", "base_drift.similarity"}
    assert set(learned.metrics) == {"denoising_loss", "dc_accuracy", "new.similarity", "new.loss"} | base | judged
    with Image.open(BytesIO(learned.grid)) as grid:
        assert grid.size == (4 * 16, (earlier + 1) * 16)


@pytest.mark.parametrize("samples", [True, False])
def test_what_is_drawn_for_the_gate_does_not_grow_with_the_lineage(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, samples: bool
) -> None:
    """Only samples of every concept do, where they are wanted; the verdict is the same."""
    asked: list[int] = []

    def counted(base: BaseModel, adapter: Adapter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        asked.append(len(prompts))
        return draw(base, adapter, prompts, seeds)

    monkeypatch.setattr(evidence, "MOST", 2)
    monkeypatch.setattr(evidence, "draw", counted)
    task = task_of(plan_of(tiny_base, CONFIG, earlier=5), tiny_base)
    assert task.plan.fisher is not None
    learned = task.judged(task.adapter(), task.plan.fisher, LENIENT.model_copy(update={"samples": samples}))
    generic = len(evidence.GENERIC_PROMPTS)
    assert asked == [6 if samples else 3, 2, generic, generic]
    assert bool(learned.grid) == samples
    assert learned.verdict.passed
    assert len([name for name in learned.metrics if name.endswith(".mmd") and name.startswith("drift.")]) == 2
    assert len([name for name in learned.metrics if name.endswith(".kv") and name.startswith("drift.")]) == 5


def test_a_concept_that_its_parent_draws_in_one_colour_holds_nobody_back(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(plan_of(tiny_base, CONFIG, earlier=1), tiny_base)
    assert task.plan.fisher is not None
    emptying = [task.parent, task.adapter()]

    def drawn(base: BaseModel, adapter: Adapter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        pictures = draw(base, adapter, prompts, seeds)
        if adapter in emptying and "<c0>" in prompts[0]:
            pictures[0] = 255
        return pictures

    monkeypatch.setattr(evidence, "draw", drawn)
    assert task.judged(emptying[1], task.plan.fisher, LENIENT).verdict.passed
    del emptying[0]
    refused = Verdict(passed=False, reasons=("<c0> draws empty pictures",))
    assert task.judged(emptying[0], task.plan.fisher, LENIENT).verdict == refused


def test_a_task_resumed_by_another_worker_learns_the_same_files(tiny_base: BaseModel) -> None:
    states: dict[int, State] = {}

    def keep(step: int, _loss: float, state: Any) -> None:
        states[step] = state()

    plan = plan_of(tiny_base, CONFIG, earlier=1)
    first, second = task_of(plan, tiny_base), task_of(plan, tiny_base)
    first.train(keep, None)
    second.train(ignore, states[1])
    assert first.finish(LENIENT).files == second.finish(LENIENT).files


@pytest.mark.parametrize("method", PRODUCT)
def test_every_product_method_learns_a_second_concept_in_a_version_of_its_parents_size(
    tiny_base: BaseModel, method: str
) -> None:
    config = LearningConfig.for_method(
        method, crops=0, loop=CONFIG.loop, fisher=CONFIG.fisher, kv=KVConfig(prompts=16), dsc=DSCConfig(steps=2, pool=1)
    )
    plan = plan_of(tiny_base, config, earlier=1)
    plan = replace(plan, teachers=(some_adapter(tiny_base.layout, {"c0": 1}, seed=1),))
    task, steps = task_of(plan, tiny_base), []
    task.train(lambda step, *_: steps.append(step), None)
    assert steps == list(range(1, task.steps + 1))
    assert task.steps == (5 if "dsc" in method else 3)
    learned = task.finish(LENIENT)
    adapter = decode(content_of(plan, learned), tiny_base.layout, learned.files)
    assert adapter.rank == plan.parent.rank
    assert torch.equal(adapter.up_KR, plan.parent.up_KR) == (method == "textual_inversion")
    assert STATE_FILE in learned.files
    assert learned.verdict.passed


@pytest.mark.parametrize("method", ["dsc", "dsc_ewc_dc_kv"])
def test_a_first_concept_has_nobody_to_teach_it(tiny_base: BaseModel, method: str) -> None:
    config = LearningConfig.for_method(method, loop=CONFIG.loop, kv=KVConfig(prompts=16))
    assert task_of(plan_of(tiny_base, config), tiny_base).steps == CONFIG.loop.steps


def test_a_protected_prompt_that_is_too_long_is_left_out(tiny_base: BaseModel) -> None:
    config = LearningConfig.for_method("kv", loop=CONFIG.loop, kv=KVConfig(prompts=32), templates=("a {}" + " b" * 18,))
    plan = replace(plan_of(tiny_base, config, earlier=1), earlier=(Concept(name="c0", noun="very long noun"),))
    with pytest.raises(InputError, match="shorten it"):
        tokenize(tiny_base, concept_prompts(config.templates, plan.earlier[0])[1], {"c0": 1})
    moments = task_of(plan, tiny_base).protect()
    assert torch.isfinite(moments).all()


def test_each_earlier_concept_is_protected_as_much_as_all_captions_together(tiny_base: BaseModel) -> None:
    config = LearningConfig.for_method("kv", loop=CONFIG.loop, kv=KVConfig(prompts=48, generic=0.25))
    task = task_of(plan_of(tiny_base, config, earlier=3), tiny_base)
    captions, own = task.plan.protected_prompts()
    each = [[prompt for prompt in own if f"<c{index}>" in prompt] for index in range(3)]
    means = [protect(tiny_base, task.student.tokenize(prompts), task.parent) for prompts in (captions, *each)]
    torch.testing.assert_close(task.protect(), torch.stack(means).sum(0))


def test_joint_training_learns_every_concept_from_its_own_pictures(tiny_base: BaseModel) -> None:
    config = LearningConfig.for_method("joint", crops=0, loop=CONFIG.loop)
    images = [Image.open(path).convert("RGB") for path in SAMPLES]
    plan, other = plan_of(tiny_base, config), Concept(name="other", noun="fox")
    task = Task(plan, tiny_base, images, shard=Shard(), wrap=lambda module: module, replay=[(other, images[:2])])
    task.train(ignore, None)
    assert list(task.adapter().tokens) == ["other", "my-mug"]
    assert sum(parameter.numel() for parameter in task.trained()) == sum(p.numel() for p in task.student.parameters())


def test_the_fisher_information_goes_where_the_base_is(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []

    def to(state: TrainingState, device: torch.device) -> TrainingState:
        moved.append(device)
        return state

    monkeypatch.setattr(TrainingState, "to", to)
    task = task_of(plan_of(tiny_base, CONFIG, earlier=1), tiny_base)
    assert moved == [tiny_base.device]
    assert task.loop.method.memory.fisher is task.fisher


def test_earlier_information_decays_by_the_gamma_that_was_asked_for(tiny_base: BaseModel) -> None:
    config = replace(CONFIG, fisher=FisherConfig(batches=2, gamma=0.25))
    task = task_of(plan_of(tiny_base, config, earlier=1), tiny_base)
    assert task.fisher is not None
    means = [
        torch.cat([f.down_PRD.flatten(), f.up_KR.flatten()]).mean() for f in (task.fisher, task.fisher_information())
    ]
    assert means[1].item() == pytest.approx(0.25 * means[0].item() + 1, rel=1e-3)


def test_a_concept_without_a_noun_is_learned_too(tiny_base: BaseModel) -> None:
    plan = plan_of(tiny_base, CONFIG)
    object.__setattr__(plan, "concept", Concept(name="it", noun=""))
    task = task_of(plan, tiny_base)
    task.train(ignore, None)
    assert task.finish(LENIENT).verdict.passed
