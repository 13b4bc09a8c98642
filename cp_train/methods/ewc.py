"""Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796), online (Schwarz et al., arXiv 1805.06370).

    L = L_denoise + (lambda / 2) sum_j F_j (theta_j - theta*_j)^2

theta: LoRA_n's factors; theta*: LoRA_{n-1}'s, where training starts; F: Fisher information accumulated over the earlier
tasks, here from the denoising loss alone, each task's scaled to mean 1 before it was added (`cp_train/fisher.py`).
Nothing is penalized in the first task. Ours: lambda = 0.1.
"""

import torch
from torch import Tensor

from cp_train.methods.base import Method
from cp_train.student import Student


class EWC(Method):
    """EWC with the Fisher information of the denoising loss."""

    name = "ewc"
    default_weight = 0.1
    contrast = 0.0
    reads_fisher = True

    def penalty(self, student: Student) -> Tensor | None:
        """The quadratic penalty, or None in the first task."""
        fisher = self.memory.fisher
        if fisher is None:
            return None
        moved = zip((fisher.down_PRD, fisher.up_KR), student.weights, student.start, strict=True)
        terms = [(f * (theta - start).square()).sum() for f, theta, start in moved]
        return self.weight / 2 * torch.stack(terms).sum()
