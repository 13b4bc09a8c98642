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
(`cp_train/prompts.py`). M is the sum of the captions' mean and of each earlier concept's, so that none is protected
less when others come; in the first task the captions alone are. lambda = 1 by default.

A penalty alone holds the new concept back as well. M_p has few large eigenvalues, along what all prompts share, and
many small ones, where a new concept can be written at next to no cost; Adam's axes, the weights' own, mix them. So
training descends in coordinates in which they are apart (`cp_train/optimizer.py`): those of A are stretched by M_p,
those of B by what M_p becomes behind A*,

    A = A* + X S(M_p),   B_p = B*_p + Y S(A* M_p A*^T),   S(G) = (G / mean of its eigenvalues + rho)^-1

A step along a direction that no protected prompt has is 1 / rho times as long, and short along one that all have.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cp_train.methods.base import Method
from cp_train.optimizer import LinearMap
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
        ridge: rho of the coordinates; 0: the weights' own axes.
    """

    weight: float = 1.0
    prompts: int = 1024
    generic: float = 0.5
    ridge: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError("kv: the weight must be at least 0 and finite.")
        if self.prompts < 1 or not 0 < self.generic <= 1:
            raise ValueError("kv: at least 1 prompt; the share of generic captions above 0 and at most 1.")
        if not 0 <= self.ridge < math.inf:
            raise ValueError("kv: the ridge must be at least 0 and finite.")


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


def stretch(moments_PDD: Tensor, ridge: float) -> Tensor:
    """S of every projection: (M / mean of its eigenvalues + rho)^-1, symmetric, [P, D, D]."""
    mean_P = moments_PDD.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY)
    identity_DD = torch.eye(moments_PDD.shape[1], device=moments_PDD.device)
    found_PDD = torch.empty_like(moments_PDD)
    for s_DD, m_DD, mean in zip(found_PDD, moments_PDD, mean_P, strict=True):  # one by one: SDXL has 140 of 2048 x 2048
        inverse_DD = torch.linalg.inv(m_DD / mean + ridge * identity_DD)
        s_DD.copy_((inverse_DD + inverse_DD.T) / 2)
    return found_PDD


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

    def coordinates(self, student: Student) -> Mapping[nn.Parameter, LinearMap]:
        """Those of the module's second formula, at the weights of the parent."""
        if not self.kv_ridge:
            return {}
        assert self.memory.protected_PDD is not None
        moments_PDD, down_PRD = self.memory.protected_PDD, self.memory.parent.down_PRD
        down_PDD = stretch(moments_PDD, self.kv_ridge)
        up_PRR = stretch(down_PRD @ moments_PDD @ down_PRD.transpose(1, 2), self.kv_ridge)
        widths = student.base.layout.widths

        def along_up(x_KR: Tensor) -> Tensor:
            return torch.cat([x_WR @ up_RR for x_WR, up_RR in zip(x_KR.split(widths), up_PRR, strict=True)])

        return {student.down_PRD: lambda x_PRD: x_PRD @ down_PDD, student.up_KR: along_up}
