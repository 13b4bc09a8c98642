"""C-LoRA (Smith et al., arXiv 2304.06027): a new LoRA per task that stays away from where the earlier ones act.

    L = L_denoise + lambda || abs(sum_{t<n} B_t A_t) * (B_n A_n) ||_F^2          dW = s sum_{t<=n} B_t A_t

*: elementwise; s = alpha / rank. Past factors are frozen, kept, and summed at inference: they lie side by side along
the rank, so a version of n tasks is one adapter of rank n r. It grows; that is why the product does not offer it.
Ours: lambda = 100.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from cp_train.methods.base import Method
from cp_train.student import Student
from services.adapter import Adapter, new_adapter


def dense(down_PRD: Tensor, up_KR: Tensor, widths: list[int]) -> Tensor:
    """B A of every projection, stacked [K, D]."""
    return torch.cat([up @ down for up, down in zip(up_KR.split(widths), down_PRD, strict=True)])


class StackedStudent(Student):
    """The parent's factors, frozen, and beside them new ones of the first task's rank; the first task's are fresh."""

    def _begin(self, parent: Adapter, seed: int) -> None:
        rank = parent.rank // max(1, len(parent.tokens))
        past = parent.rank if parent.tokens else 0
        new = new_adapter(self.base.layout, rank=rank, seed=seed) if past else parent
        self.past_down_PRD, self.past_up_KR = parent.down_PRD[:, :past], parent.up_KR[:, :past]
        self.down_PRD = nn.Parameter(new.down_PRD.to(parent.down_PRD, copy=True))
        self.up_KR = nn.Parameter(new.up_KR.to(parent.up_KR, copy=True))
        self.alpha = parent.scale * (past + rank)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Past and new, side by side."""
        return torch.cat([self.past_down_PRD, self.down_PRD], 1), torch.cat([self.past_up_KR, self.up_KR], 1)


class CLoRA(Method):
    """The original: past deltas are kept and summed."""

    name = "clora"
    default_weight = 100.0
    student: ClassVar[type[Student]] = StackedStudent
    benchmark_only: ClassVar[str | None] = "its adapter grows with every concept (`clora_shared` does not)"
    _past_KD: Tensor | None = None

    def penalty(self, student: Student) -> Tensor | None:
        """The overlap of the new delta with the past ones, or None in the first task."""
        if self.memory.first:
            return None
        widths = student.base.layout.widths
        if self._past_KD is None:  # the same in every step of a task
            self._past_KD = dense(self.memory.parent.down_PRD, self.memory.parent.up_KR, widths).abs()
        down_PRD, up_KR = student.weights
        return self.weight * (self._past_KD * dense(down_PRD, up_KR, widths)).square().sum()
