"""C-LoRA with one LoRA that every task continues, so that the adapter keeps its size.

    L = L_denoise + lambda || abs(B_{n-1} A_{n-1}) * (B_n A_n) ||_F^2            B_n A_n starts as B_{n-1} A_{n-1}

The past delta is the parent's. What is penalized is then large from the first step of task 2 on and least where the
LoRA is zero: the weights decay. Jha et al. (arXiv 2410.00700) show this degeneracy of C-LoRA; here it can be repeated.
"""

from cp_train.methods.clora import CLoRA
from cp_train.student import Student


class CLoRAShared(CLoRA):
    """The form whose weights collapse from task 2 on."""

    name = "clora_shared"
    student = Student
    benchmark_only = None
