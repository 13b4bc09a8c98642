"""Learning that is made up, for tests of everything else that a job does."""

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from cp_train.plan import Plan
from cp_train.task import Learned
from services.adapter import TrainingState, encode
from services.base_model import BaseModel
from services.lineage import Verdict
from services.settings import Settings


def made_up(base: BaseModel, *, refused: Collection[str] = ()) -> Callable[[Plan, Settings], Learned]:
    """What stands for `cp_train.trainer.train`: a version of its parent's weights; the gate refuses some concepts."""

    def learned(plan: Plan, settings: Settings) -> Learned:
        row = torch.full((1, base.layout.text_width), 0.5)
        adapter = replace(plan.parent, tokens={**plan.parent.tokens, plan.concept.name: row})
        state = TrainingState(adapter.down_PRD.abs(), adapter.up_KR.abs())
        files, samples = encode(adapter, state, base.layout), b"grid" if settings.samples else b""
        return Learned(files, samples, Verdict(passed=plan.concept.name not in refused), {"loss": 0.5})

    return learned
