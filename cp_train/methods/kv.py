"""Keys and values held still where they matter: consolidation where the adapter acts. Ours.

The adapter changes nothing but K = W_k e and V = W_v e, functions of a prompt's text embedding e alone: no image, no
timestep. All forgetting passes through them. So keep them for the prompts that matter:

    L_kv = lambda mean_{p, e} || (dW_p - dW*_p) e ||^2 / || W_p e ||^2

p: projections; e: the text embeddings, token by token, padding too, of protected prompts: those of the earlier concepts
(old embeddings are in the adapter, so they can be rebuilt) and generic captions; dW*: the parent's delta. With the
second moments of the protected embeddings the mean over any number of prompts is a closed form:

    L_kv = lambda mean_p tr(D_p M_p D_p^T),   D = dW - dW*,   M_p = mean_e e e^T / || W_p e ||^2

so a step needs no text encoder and no U-Net for it. D is low-rank: D = s (B (A - A*) + (B - B*) A*), written so that
nothing cancels near the start. Half of an earlier concept's prompts are its training prompts, half are varied ones
(`cp_train/prompts.py`). In the first task the generic captions alone are protected. lambda = 3 by default.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cp_train.methods.base import Method
from cp_train.student import Student
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import TokenizedPrompt, embed, spoken

PROMPTS_AT_ONCE = 64
TINY = 1e-30
"""Keys and values of length 0 (an empty prompt's, of SDXL) cannot move, and are not divided by."""


@dataclass(frozen=True, kw_only=True)
class KVConfig:
    """Settings of the protection; all ours.

    Attributes:
        weight: its lambda, alone or beside another penalty.
        prompts: how many prompts are protected; each is encoded once per task.
        generic: the share of generic captions among them.
    """

    weight: float = 3.0
    prompts: int = 1024
    generic: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError("kv: the weight must be at least 0 and finite.")
        if self.prompts < 1 or not 0 < self.generic <= 1:
            raise ValueError("kv: at least 1 prompt; the share of generic captions above 0 and at most 1.")


def second_moments(base: BaseModel, contexts_BLD: Iterable[Tensor]) -> Tensor:
    """M_PDD of some batches of text embeddings, float32."""
    layout = base.layout
    total = base.weight_KD.new_zeros(len(layout.projections), layout.text_width, layout.text_width)
    count = 0
    for context_BLD in contexts_BLD:
        e_TD = spoken(base, context_BLD).flatten(0, 1)
        norms = functional.linear(e_TD, base.weight_KD).split(layout.widths, dim=1)
        total += torch.stack([e_TD.T @ (e_TD / y_TW.square().sum(1, keepdim=True).clamp_min(TINY)) for y_TW in norms])
        count += len(e_TD)
    return total / count


def protect(base: BaseModel, prompts: Sequence[TokenizedPrompt], parent: Adapter) -> Tensor:
    """M_PDD of the prompts that must stay."""
    batches = (prompts[start : start + PROMPTS_AT_ONCE] for start in range(0, len(prompts), PROMPTS_AT_ONCE))
    with torch.no_grad():
        return second_moments(base, (embed(base, batch, parent.tokens) for batch in batches))


def moved(student: Student, parent: Adapter, moments_PDD: Tensor) -> Tensor:
    """Mean over the projections of tr(D M D^T)."""
    down_PRD, up_KR = student.factors()
    right_PQD = torch.cat([down_PRD - parent.down_PRD, parent.down_PRD], 1)
    left_KQ = torch.cat([up_KR, up_KR - parent.up_KR], 1)
    gram_PQQ = torch.stack([left_WQ.T @ left_WQ for left_WQ in left_KQ.split(student.base.layout.widths)])
    spread_PQQ = right_PQD @ moments_PDD @ right_PQD.transpose(1, 2)
    return student.scale**2 * (gram_PQQ * spread_PQQ).sum() / len(moments_PDD)


class KV(Method):
    """Keys and values of protected prompts stay where the parent put them."""

    name = "kv"
    protects = True

    def penalty(self, student: Student) -> Tensor | None:
        """L_kv, plus what the other methods it is composed with penalize."""
        assert self.memory.protected_PDD is not None
        own = self.kv_weight * moved(student, self.memory.parent, self.memory.protected_PDD)
        other = super().penalty(student)
        return own if other is None else own + other
