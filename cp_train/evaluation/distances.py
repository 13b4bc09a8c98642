"""How far two sets of pictures are apart, judged by L2-normalised image features x, y of width D.

    MMD^2 = mean_{i,j} k(x_i, x_j) + mean_{i,j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j),    k(x, y) = (1 + x.y)^2

the biased estimator (Gretton et al., JMLR 2012) with the kernel of C-LoRA's tables (arXiv 2304.06027), times 1000. It
is never negative, and at small sets above zero for two sets of one distribution; equally so for every method.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j),    k(x, y) = (1 + x.y)^3

(arXiv 1801.01401), unbiased, and too noisy for small sets: `kid` refuses fewer than 100 pictures.
"""

import torch
from torch import Tensor

LEAST = 100
"""Pictures in each set that KID is computed from, at least."""


def mmd(x_ND: Tensor, y_MD: Tensor) -> float:
    """Squared maximum mean discrepancy, times 1000; not a number where the features are none."""
    x, y = x_ND.double(), y_MD.double()
    value = _kernel(x, x, 2).mean() + _kernel(y, y, 2).mean() - 2 * _kernel(x, y, 2).mean()
    return 0.0 if value <= 0 else 1000 * value.item()


def kid(x_ND: Tensor, y_MD: Tensor) -> float | None:
    """Kernel Inception distance, times 1000; None where a set has fewer than 100 pictures."""
    return None if min(len(x_ND), len(y_MD)) < LEAST else 1000 * unbiased_kid(x_ND, y_MD)


def unbiased_kid(x_ND: Tensor, y_MD: Tensor) -> float:
    """The equation above, for sets of any size from two pictures on."""
    x, y = x_ND.double(), y_MD.double()
    own = sum(_off_diagonal_mean(_kernel(z, z, 3)) for z in (x, y))
    return own - 2 * _kernel(x, y, 3).mean().item()


def similarity(x_ND: Tensor, y_MD: Tensor) -> float:
    """Mean cosine of all pairs: CLIP-I, where the features are CLIP's."""
    return (x_ND.double() @ y_MD.double().T).mean().item()


def _kernel(x_ND: Tensor, y_MD: Tensor, degree: int) -> Tensor:
    return (1 + x_ND @ y_MD.T) ** degree


def _off_diagonal_mean(k_NN: Tensor) -> float:
    count = len(k_NN)
    return ((k_NN.sum() - torch.trace(k_NN)) / (count * (count - 1))).item()
