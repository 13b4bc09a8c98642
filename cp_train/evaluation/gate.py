"""The gate a version passes before it is served.

A candidate must be sound (finite numbers, pictures that show something), know its new concept, and have kept what its
parent knew: earlier concepts and the base's own knowledge (`evidence.py`). Every limit that it misses is a reason.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cp_train.evaluation.evidence import Evidence
from services.adapter import Adapter, TrainingState
from services.lineage import Verdict
from services.settings import Settings

FLAT = 2.0
"""A picture whose most varied channel spreads less than this (standard deviation, of 255) shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is still good enough; the settings `gate_*` say more."""

    kv: float
    mmd: float
    similarity: float
    dc_drop: float
    base_kv: float
    base_mmd: float
    base_similarity: float
    new_similarity: float
    new_loss: float

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Those of the settings."""
        return cls(
            kv=settings.gate_kv,
            mmd=settings.gate_mmd,
            similarity=settings.gate_similarity,
            dc_drop=settings.gate_dc_drop,
            base_kv=settings.gate_base_kv,
            base_mmd=settings.gate_base_mmd,
            base_similarity=settings.gate_base_similarity,
            new_similarity=settings.gate_new_similarity,
            new_loss=settings.gate_new_loss,
        )


def unsound(
    adapter: Adapter, fisher: TrainingState, pictures: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> list[str]:
    """Reasons against a version by its tensors and by what it draws.

    Fisher information that is not finite is refused too: nothing could be learned on top of such a version.

    Args:
        adapter, fisher: the version's.
        pictures: name of a judged concept, or of the new one -> its pictures, [seeds, H, W, 3] in 0..255.
        before: the parent's pictures of the judged ones: what was empty already is no reason.
    """
    reasons = []
    weights = (adapter.down_PRD, adapter.up_KR, *adapter.tokens.values())
    if not _finite(weights):
        reasons.append("the adapter holds numbers that are not finite")
    if not _finite((fisher.down_PRD, fisher.up_KR)):
        reasons.append("its Fisher information holds numbers that are not finite")
    emptied = (n for n, shown in pictures.items() if _empty(shown) and not (n in before and _empty(before[n])))
    return reasons + [f"<{name}> draws empty pictures" for name in emptied]


def _empty(pictures_SHWC: Tensor) -> bool:
    """Whether one of some pictures is empty."""
    # Over the pixels, channel by channel: one colour everywhere is empty, too.
    spread_S = pictures_SHWC.float().flatten(1, 2).std(1).amax(-1)
    return bool((spread_S < FLAT).any())


def judge(evidence: Evidence, limits: Limits, concept: str) -> Verdict:
    """Judge a sound version that learned `concept`."""
    reasons = (*_forgotten(evidence, limits), *_unlearned(evidence, limits, concept))
    return Verdict(not reasons, reasons)


def _forgotten(evidence: Evidence, limits: Limits) -> Iterator[str]:
    """What of the parent's is lost."""
    for name, change in evidence.kv.items():
        yield from _above(f"<{name}> changed: keys and values by", change, limits.kv)
    for name, drift in evidence.drift.items():
        yield from _above(f"<{name}> changed: MMD", drift.mmd, limits.mmd)
        yield from _below(f"<{name}> changed: similarity", drift.similarity, limits.similarity)
        yield from _above(f"<{name}> is told apart less well: accuracy lost", evidence.dc_drop[name], limits.dc_drop)
    yield from _above("the base's own knowledge changed: keys and values by", evidence.base_kv, limits.base_kv)
    yield from _above("the base's own knowledge changed: MMD", evidence.base.mmd, limits.base_mmd)
    yield from _below("the base's own knowledge changed: similarity", evidence.base.similarity, limits.base_similarity)


def _unlearned(evidence: Evidence, limits: Limits, concept: str) -> Iterator[str]:
    """What of the new concept was not learned."""
    yield from _below(f"<{concept}> is unlike its images: similarity", evidence.new_similarity, limits.new_similarity)
    yield from _above(f"<{concept}> was not learned: relative error", evidence.new_loss, limits.new_loss)


def _above(what: str, value: float, limit: float) -> Iterator[str]:
    if not value <= limit:  # NaN is no figure to pass with
        yield f"{what} {value:.3g}, at most {limit:.3g}"


def _below(what: str, value: float, limit: float) -> Iterator[str]:
    if not value >= limit:
        yield f"{what} {value:.3g}, at least {limit:.3g}"


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
