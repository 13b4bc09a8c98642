"""VeRA (Kopiczko et al., arXiv 2310.11454) in place of LoRA.

    dW = diag(b) B diag(d) A

A [R, D] and B [width, R]: random, frozen, the same for every layer of a shape; only b [width] and d [R] of each layer
are trained. A and B are Kaiming-uniform, +-sqrt(6 / columns), b starts at 0 and d at 0.1, all as in peft. As LoRA
factors: A' = diag(d) A, B' = diag(b) B; a version is stored and served as these, and b and d are read off them again.
EWC penalizes b and d.
"""

import math

import torch
from torch import Tensor, nn

from cp_train.methods.ewc import EWC
from cp_train.methods.ewc_dc import EWCDC
from cp_train.methods.finetune import Finetune
from cp_train.student import Student
from services.adapter import Adapter, Layout

START = 0.1
"""Of every d."""
SEED = 0
LR = 1e-2
"""Ours: vectors that scale frozen matrices need larger steps than the matrices of a LoRA."""
WHY = "a lineage's Fisher information and rank are LoRA's"


def frozen_factors(layout: Layout, rank: int) -> tuple[Tensor, Tensor]:
    """A [R, D], and B of every layer, packed [K, R]; one draw for each shape."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(rows: int, columns: int) -> Tensor:
        uniform = torch.rand(rows, columns, generator=generator) * 2 - 1
        return uniform * math.sqrt(6 / columns)

    down_RD = draw(rank, layout.text_width)
    ups = {width: draw(width, rank) for width in sorted(set(layout.widths))}
    return down_RD, torch.cat([ups[width] for width in layout.widths])


class VeraStudent(Student):
    """Trains d_PR and b_K."""

    def _begin(self, parent: Adapter, seed: int) -> None:
        del seed
        down_RD, up_KR = frozen_factors(self.base.layout, parent.rank)
        self.frozen_down_RD, self.frozen_up_KR = down_RD.to(parent.down_PRD), up_KR.to(parent.up_KR)
        d_PR = _factor(parent.down_PRD, self.frozen_down_RD)
        self.d_PR = nn.Parameter(d_PR if parent.tokens else torch.full_like(d_PR, START))
        self.b_K = nn.Parameter(_factor(parent.up_KR, self.frozen_up_KR))

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(d) A and diag(b) B."""
        return self.d_PR.unsqueeze(-1) * self.frozen_down_RD, self.b_K.unsqueeze(-1) * self.frozen_up_KR


def _factor(scaled: Tensor, rows: Tensor) -> Tensor:
    """By how much each row was scaled (least squares)."""
    factor: Tensor = (scaled * rows).sum(-1) / rows.square().sum(-1)
    return factor


class FinetuneVera(Finetune):
    """Sequential fine-tuning of VeRA."""

    name = "finetune_vera"
    student = VeraStudent
    default_lr = LR
    benchmark_only = WHY


class EWCVera(EWC):
    """EWC on VeRA."""

    name = "ewc_vera"
    student = VeraStudent
    default_lr = LR
    benchmark_only = WHY


class EWCDCVera(EWCDC):
    """EWC with diffusion-classifier scores on VeRA."""

    name = "ewc_dc_vera"
    student = VeraStudent
    default_lr = LR
    benchmark_only = WHY
