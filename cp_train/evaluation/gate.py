"""The gate a version passes before it is served: the adapter is sound, that is, finite and able to draw."""

from collections.abc import Iterable

import torch
from torch import Tensor

from services.adapter import Adapter, TrainingState
from services.lineage import Verdict

FLAT = 2.0
"""A picture whose most varied channel spreads less than this (standard deviation, of 255) shows nothing."""


def judge(adapter: Adapter, fisher: TrainingState, pictures_PSHWC: Tensor, concepts: list[str]) -> Verdict:
    """Judge a version by its tensors and the fixed-seed pictures of all concepts, [concepts, seeds, H, W, 3] in 0..255.

    Fisher information that is not finite is refused too: nothing could be learned on top of such a version.
    """
    reasons = []
    weights = (adapter.down_PRD, adapter.up_KR, *adapter.tokens.values())
    if not _finite(weights):
        reasons.append("the adapter holds numbers that are not finite")
    if not _finite((fisher.down_PRD, fisher.up_KR)):
        reasons.append("its Fisher information holds numbers that are not finite")
    # Over the pixels, channel by channel: one colour everywhere is empty, too.
    spread_PS = pictures_PSHWC.float().flatten(2, 3).std(2).amax(-1)
    empty = (spread_PS < FLAT).any(1).tolist()
    reasons += [f"<{name}> draws empty pictures" for name, flat in zip(concepts, empty, strict=True) if flat]
    return Verdict(not reasons, tuple(reasons))


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
