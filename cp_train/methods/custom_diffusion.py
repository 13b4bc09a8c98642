"""Custom Diffusion (Kumari et al., arXiv 2212.04488): every key and value projection is trained in full.

Sequential: dW_n starts from dW_{n-1}; the loss is L_denoise alone.

Merged, in closed form, from models that each learned one concept from the bare base:

    min_W || W C_reg - W_0 C_reg ||_F    s.t.  W C = V
    W = W_0 + (V - W_0 C) G^-1 C^T M^-1          M = C_reg C_reg^T,  G = C^T M^-1 C

C [D, c]: text features of the concepts' prompts; V: what each concept's own model maps them to; C_reg [D, r]: features
of generic captions. W_0: the base's. Ours: one column of C for every token from the concept's on, up to the end token
(the U-Net reads them all, but padding repeats; the constraints must stay fewer than D); a ridge of 1e-4 of the mean
diagonal element on M and G, so that equal or nearly equal features do not make them singular; float64.
As an adapter: A = identity, B = dW, rank D. Its size is D / r times a LoRA's; that is why it is benchmark only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cp_train.methods.base import Method
from cp_train.prompts import captions, plain_prompt
from cp_train.student import Student
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import embed, spoken, tokenize
from services.manifest import Concept

RIDGE = 1e-4
CAPTIONS = 500
LR = 1e-4
"""Ours: each step of Adam moves every element of dW by so much, where a LoRA's moves along a few directions."""
WHY = "its deltas are not low-rank"


class FullStudent(Student):
    """Trains dW itself: B is dW, A the identity."""

    def _begin(self, parent: Adapter, seed: int) -> None:
        del seed
        layout = self.base.layout
        eye = torch.eye(layout.text_width).to(parent.down_PRD)
        self.identity_PDD = eye.expand(len(layout.projections), -1, -1)
        fresh = parent.up_KR.new_zeros(layout.total, layout.text_width)
        self.delta_KD = nn.Parameter(parent.up_KR.clone() if parent.tokens else fresh)
        self.alpha, self.scale = float(layout.text_width), 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """The identity and dW."""
        return self.identity_PDD, self.delta_KD


def full_adapter(base: BaseModel, delta_KD: Tensor, tokens: Mapping[str, Tensor]) -> Adapter:
    """A full delta as an adapter of rank D."""
    width = base.layout.text_width
    eye_PDD = torch.eye(width, device=base.device).expand(len(base.layout.projections), -1, -1).clone()
    return Adapter(eye_PDD, delta_KD, float(width), tokens)


def merged_delta(
    weight_KD: Tensor, features_CD: Tensor, targets_CK: Tensor, regular_RD: Tensor, *, ridge: float
) -> Tensor:
    """W - W_0 of the closed form, [K, D]. C constraints, R features of generic captions, as rows."""
    weight, c, v, reg = (t.double() for t in (weight_KD, features_CD, targets_CK, regular_RD))
    inverse_c_DC = torch.linalg.solve(_ridged(reg.T @ reg, ridge), c.T)
    gram_CC = _ridged(c @ inverse_c_DC, ridge)
    missing_CK = v - c @ weight.T
    delta_DK: Tensor = inverse_c_DC @ torch.linalg.solve(gram_CC, missing_CK)
    return delta_DK.T.to(weight_KD)


def _ridged(square: Tensor, ridge: float) -> Tensor:
    return square + ridge * square.diagonal().mean() * torch.eye(len(square)).to(square)


def concept_features(base: BaseModel, name: str, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """Text features of a concept's tokens and what follows, [C, D], and what its own model maps them to, [C, K]."""
    vectors = {token: len(rows) for token, rows in adapter.tokens.items()}
    prompt = tokenize(base, plain_prompt(Concept(name=name, noun="")), vectors)
    last = prompt.ids.index(base.tokenizer.eos_token_id, 1)
    with torch.no_grad():
        features = spoken(base, embed(base, [prompt], adapter.tokens))[0, prompt.concepts[0][0] : last + 1]
    ups = adapter.up_KR.split(base.layout.widths)
    deltas = [features @ down.T @ up.T for down, up in zip(adapter.down_PRD, ups, strict=True)]
    return features, features @ base.weight_KD.T + adapter.scale * torch.cat(deltas, -1)


class CustomDiffusion(Method):
    """Full deltas, one task after the other."""

    name = "custom_diffusion"
    student = FullStudent
    default_lr = LR
    benchmark_only = WHY


class CustomDiffusionMerge(CustomDiffusion):
    """Full deltas, each concept alone, merged in closed form."""

    name = "custom_diffusion_merge"
    alone = True
    benchmark_only = f"{WHY}, and every concept's own model must be kept"

    @classmethod
    def model(cls, base: BaseModel, adapters: Mapping[str, Adapter]) -> Adapter:
        """The merged delta, and every concept's embedding."""
        pairs = [concept_features(base, name, adapter) for name, adapter in adapters.items()]
        features, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        generic = [tokenize(base, text, {}) for text in captions(CAPTIONS, torch.Generator().manual_seed(0))]
        with torch.no_grad():
            regular_RD = spoken(base, embed(base, generic, {})).flatten(0, 1)
        delta = merged_delta(base.weight_KD, features, targets, regular_RD, ridge=RIDGE)
        return full_adapter(base, delta, {name: adapter.tokens[name] for name, adapter in adapters.items()})
