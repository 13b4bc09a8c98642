"""One LoRA per concept, learned from the bare base and loaded by the concepts that a prompt names.

    K, V = (W + s sum_{c in prompt} B_c A_c) e

Nothing is ever forgotten and the size grows with every concept: a sanity bound. Two concepts in one prompt add two
deltas that never met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cp_train.methods.base import Method
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import delta, embed, pack, tokenize


@dataclass(frozen=True, eq=False)
class PerConcept:
    """Concept name -> its own adapter."""

    base: BaseModel
    adapters: Mapping[str, Adapter]

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Keys and values kv_PLK; a prompt without a concept is the base's."""
        return torch.cat([self._one(prompt) for prompt in prompts])

    @torch.no_grad()
    def _one(self, prompt: str) -> Tensor:
        tokens = {name: adapter.tokens[name] for name, adapter in self.adapters.items()}
        tokenized = tokenize(self.base, prompt, {name: len(rows) for name, rows in tokens.items()})
        context_BLD = embed(self.base, [tokenized], tokens)
        named = dict.fromkeys(name for _, name, _ in tokenized.concepts)
        changes = [
            own.scale * delta(self.base, context_BLD, own.down_PRD, own.up_KR)
            for own in (self.adapters[name] for name in named)
        ]
        return pack(self.base, context_BLD, torch.stack(changes).sum(0) if changes else None)


class PerConceptLoRA(Method):
    """No forgetting, for its size."""

    name = "per_concept"
    alone = True
    benchmark_only = "it keeps one adapter for every concept"

    @classmethod
    def model(cls, base: BaseModel, adapters: Mapping[str, Adapter]) -> PerConcept:
        """Every concept's own."""
        return PerConcept(base, adapters)
