"""What the gate judges a candidate by, with nothing but what the registry holds and the new concept's own images.

Parent and candidate draw from the same seeds (x_s by the parent, y_s by the candidate, as image features):

    similarity = mean_s x_s . y_s        mmd: `distances.mmd` of all x against all y

of every judged earlier concept, and of generic prompts for the base's own knowledge. A first version's parent is an
adapter that changes nothing, so it is compared with the base itself.

Only those concepts are judged whose keys and values moved most, |kv' - kv| / |kv| of the plain prompt: the denoiser
knows a prompt by nothing else. That costs one pass of the text encoder and no picture, whatever the lineage's length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cp_train.data import AT_ONCE
from cp_train.evaluation.distances import mmd, similarity
from cp_train.evaluation.draw import draw
from cp_train.evaluation.features import Features
from cp_train.evaluation.metrics import dc_accuracy, denoising_loss
from cp_train.prompts import NO_NOUN, TEMPLATES, plain_prompt
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition
from services.manifest import Concept

MOST = 8
"""Earlier concepts that are judged, at most."""
RIVALS = 3
"""Other concepts that a picture is told apart from, at most."""
GENERIC_PROMPTS = tuple(TEMPLATES[0].format(noun) for noun in ("cat", "flower", "house", "car"))
"""They stand for the base's own knowledge, and `FEW` seeds that each is drawn from."""
FEW = 2


@dataclass(frozen=True)
class Drift:
    """How far the candidate's pictures of something are from its parent's.

    Attributes:
        mmd: squared maximum mean discrepancy, times 1000; 0 is the same.
        similarity: mean cosine of the pictures of the same seed; 1 is the same.
    """

    mmd: float
    similarity: float


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured.

    Attributes:
        kv: name of every earlier concept -> relative change of its keys and values.
        base_kv: the same of the generic prompts, the largest.
        drift: name of a judged concept -> its drift.
        dc_drop: name of a judged concept -> by how much the share of the parent's pictures that diffusion-classifier
            scores put right is smaller with the candidate than with the parent.
        dc_accuracy: that share, with the candidate.
        base: drift of generic prompts.
        new_similarity: mean cosine of the new concept's pictures and its own images.
        new_loss: denoising error of these images under the candidate's concept, as a share of the parent's under
            its class noun.
    """

    kv: dict[str, float]
    base_kv: float
    drift: dict[str, Drift]
    dc_drop: dict[str, float]
    dc_accuracy: dict[str, float]
    base: Drift
    new_similarity: float
    new_loss: float

    def metrics(self) -> dict[str, float]:
        """One level, for MLflow and the manifest."""
        found = {f"drift.{name}.kv": value for name, value in self.kv.items()}
        for name, drift in self.drift.items():
            found |= {f"drift.{name}.mmd": drift.mmd, f"drift.{name}.similarity": drift.similarity}
            found[f"drift.{name}.dc_accuracy"] = self.dc_accuracy[name]
            found[f"drift.{name}.dc_drop"] = self.dc_drop[name]
        base = {
            "base_drift.kv": self.base_kv,
            "base_drift.mmd": self.base.mmd,
            "base_drift.similarity": self.base.similarity,
        }
        return found | base | {"new.similarity": self.new_similarity, "new.loss": self.new_loss}


@dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """A candidate and what it is compared with.

    Attributes:
        earlier: the concepts that the parent knows.
        concept: the new one, and `latents_NCHW` of its images.
        seeds: that concepts are drawn from.
        tau: of the diffusion-classifier scores.
    """

    base: BaseModel
    features: Features
    parent: Adapter
    candidate: Adapter
    earlier: Sequence[Concept]
    concept: Concept
    latents_NCHW: Tensor
    seeds: Sequence[int]
    tau: float

    @cached_property
    def kv(self) -> dict[str, float]:
        """Name of every earlier concept -> relative change of its keys and values."""
        if not self.earlier:
            return {}
        change = self._kv_change([plain_prompt(concept) for concept in self.earlier]).tolist()
        return {concept.name: value for concept, value in zip(self.earlier, change, strict=True)}

    @cached_property
    def judged(self) -> list[Concept]:
        """The earlier concepts whose keys and values moved most, in the order learned."""
        worst = sorted(self.kv, key=lambda name: self.kv[name], reverse=True)[:MOST]
        return [concept for concept in self.earlier if concept.name in worst]

    @cached_property
    def before(self) -> dict[str, Tensor]:
        """Name of a judged concept -> its pictures by the parent, [seeds, H, W, 3]."""
        return draw_concepts(self.base, self.parent, self.judged, self.seeds)

    def evidence(self, pictures: Mapping[str, Tensor]) -> Evidence:
        """Measure everything, given the candidate's pictures of the judged concepts and of the new one."""
        told = {concept.name: self._told_apart(concept) for concept in self.judged}
        return Evidence(
            kv=self.kv,
            base_kv=self._kv_change(GENERIC_PROMPTS).max().item(),
            drift={name: self._drift(theirs, pictures[name]) for name, theirs in self.before.items()},
            dc_accuracy={name: candidate for name, (_, candidate) in told.items()},
            dc_drop={name: parent - candidate for name, (parent, candidate) in told.items()},
            base=self._base_drift(),
            new_similarity=self._new_similarity(pictures[self.concept.name]),
            new_loss=self._new_loss(),
        )

    def _kv_change(self, prompts: Sequence[str]) -> Tensor:
        """|kv' - kv| / |kv| of each prompt, [P]; a few at once, for a lineage may be long."""
        starts = range(0, len(prompts), AT_ONCE)
        return torch.cat([self._kv_change_of(prompts[start : start + AT_ONCE]) for start in starts])

    def _kv_change_of(self, prompts: Sequence[str]) -> Tensor:
        keys = self.base.layout.total  # behind them is what no adapter changes (`second_encoder.py`)
        packed = (condition(self.base, prompts, adapter) for adapter in (self.parent, self.candidate))
        old, new = (kv_PLK[..., :keys].flatten(1) for kv_PLK in packed)
        change_P: Tensor = (new - old).norm(dim=1) / old.norm(dim=1)
        return change_P

    def _drift(self, parent_SHWC: Tensor, candidate_SHWC: Tensor) -> Drift:
        x, y = self.features.images(parent_SHWC), self.features.images(candidate_SHWC)
        return Drift(mmd(x, y), (x.double() * y.double()).sum(-1).mean().item())

    def _base_drift(self) -> Drift:
        pairs = (
            draw(self.base, adapter, GENERIC_PROMPTS, self.seeds[:FEW]) for adapter in (self.parent, self.candidate)
        )
        return self._drift(*(pictures.flatten(0, 1) for pictures in pairs))

    def _told_apart(self, concept: Concept) -> tuple[float, float]:
        """Share of the parent's pictures of a concept that parent and candidate put right."""
        latents = self.base.encode_images(_pixels(self.before[concept.name]).to(self.base.vae.dtype)).float()
        rivals = [plain_prompt(other) for other in self.judged if other is not concept][:RIVALS]
        prompts = [plain_prompt(concept), _prior(concept), *rivals]
        parent, candidate = (
            dc_accuracy(self.base, adapter, latents, prompts, tau=self.tau) for adapter in (self.parent, self.candidate)
        )
        return parent, candidate

    def _new_similarity(self, pictures_SHWC: Tensor) -> float:
        chunks = self.latents_NCHW.to(self.base.vae.dtype).split(AT_ONCE)
        own = torch.cat([self.base.decode_latents(chunk).cpu() for chunk in chunks])
        return similarity(self.features.images(pictures_SHWC), self.features.images(own))

    def _new_loss(self) -> float:
        learned = denoising_loss(self.base, self.candidate, self.latents_NCHW, plain_prompt(self.concept))
        return learned / denoising_loss(self.base, self.parent, self.latents_NCHW, _prior(self.concept))


def draw_concepts(
    base: BaseModel, adapter: Adapter, concepts: Sequence[Concept], seeds: Sequence[int]
) -> dict[str, Tensor]:
    """Name of each concept -> pictures of its plain prompt, [seeds, H, W, 3]."""
    if not concepts:
        return {}
    pictures_PSHWC = draw(base, adapter, [plain_prompt(concept) for concept in concepts], seeds)
    return {concept.name: pictures for concept, pictures in zip(concepts, pictures_PSHWC, strict=True)}


def _prior(concept: Concept) -> str:
    """The prompt of the pretrained concept c^0, the class noun."""
    return TEMPLATES[0].format(concept.noun or NO_NOUN)


def _pixels(pictures_NHWC: Tensor) -> Tensor:
    return pictures_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
