"""The weights being trained: the LoRA of the whole lineage, and the embedding of the new concept."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import TokenizedPrompt, embed, project, token_table, tokenize
from services.manifest import Concept


class Student(nn.Module):
    """LoRA_n, initialised from LoRA_{n-1}, and V*_n, initialised from the class noun's embedding.

    Embeddings of earlier concepts are no parameters: frozen for ever. A subclass may make the LoRA factors of other
    weights: it overrides `_begin` and `factors`.

    Attributes:
        start: the weights that training starts from, theta* = those of the parent.
        alpha, scale: of the LoRA that `factors` makes; scale = alpha / rank.
    """

    def __init__(self, base: BaseModel, parent: Adapter, *concepts: Concept, seed: int) -> None:
        super().__init__()
        self.base = base
        self.alpha, self.scale = parent.alpha, parent.scale
        self._begin(parent, seed)
        self.start = tuple(weight.detach().clone() for weight in self.weights)
        self.token = nn.Parameter(torch.cat([noun_embedding(base, concept, seed=seed) for concept in concepts]))
        self.concepts = concepts
        learned = {concept.name for concept in concepts}
        self.earlier = {name: rows for name, rows in parent.tokens.items() if name not in learned}

    def _begin(self, parent: Adapter, seed: int) -> None:
        """Make the parameters, all but the embeddings, out of the parent's weights."""
        del seed
        self.down_PRD = nn.Parameter(parent.down_PRD.clone())
        self.up_KR = nn.Parameter(parent.up_KR.clone())

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """theta: every parameter but the embeddings."""
        return tuple(parameter for name, parameter in self.named_parameters() if name != "token")

    def factors(self) -> tuple[Tensor, Tensor]:
        """The packed LoRA factors down_PRD and up_KR that the weights make, differentiable."""
        return self.down_PRD, self.up_KR

    @property
    def tokens(self) -> dict[str, Tensor]:
        """Every concept's embeddings, the new ones trainable."""
        rows = self.token.split([concept.vectors for concept in self.concepts])
        return {**self.earlier, **{concept.name: new for concept, new in zip(self.concepts, rows, strict=True)}}

    def tokenize(self, prompts: Sequence[str]) -> list[TokenizedPrompt]:
        """Tokenized prompts over every concept this student knows."""
        vectors = {name: len(rows) for name, rows in self.tokens.items()}
        return [tokenize(self.base, prompt, vectors) for prompt in prompts]

    def encode(self, prompts: Sequence[TokenizedPrompt]) -> Tensor:
        """Text embeddings context_PLD of some prompts, differentiable in the new embeddings."""
        return embed(self.base, prompts, self.tokens)

    def forward(self, context_PLD: Tensor) -> Tensor:
        """Packed keys and values kv_PLK of some text embeddings, differentiable in both."""
        return project(self.base, context_PLD, *self.factors(), self.scale)

    def adapter(self) -> Adapter:
        """A frozen copy of the present weights."""
        down, up = (factor.detach().clone() for factor in self.factors())
        tokens = {name: rows.detach().clone() for name, rows in self.tokens.items()}
        return Adapter(down, up, self.alpha, tokens)


class FrozenContexts:
    """Text embeddings of a student whose embeddings do not change any more: each prompt is encoded once."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """context_PLD of some prompts."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            with torch.no_grad():
                contexts = self.student.encode(self.student.tokenize(new))
            self._known |= dict(zip(new, contexts, strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])


def noun_embedding(base: BaseModel, concept: Concept, *, seed: int) -> Tensor:
    """V*_n at the start: the mean of the class noun's token embeddings, or (no noun) a draw of the same spread.

    Where there are two text encoders, their parts are side by side.
    """
    ids = base.tokenizer(concept.noun, add_special_tokens=False).input_ids if concept.noun else []
    generator = torch.Generator().manual_seed(seed)
    tables = [token_table(encoder).detach().float() for encoder in base.text_encoders]
    return torch.cat([_start(table, ids, concept, generator) for table in tables], dim=1)


def _start(table: Tensor, ids: list[int], concept: Concept, generator: torch.Generator) -> Tensor:
    spread = table.std() * torch.randn(concept.vectors, table.shape[1], generator=generator).to(table.device)
    if not ids:
        return spread
    # A second vector equal to the first would get equal gradients for ever.
    distinct = 0.1 * spread * (torch.arange(concept.vectors, device=table.device) > 0).unsqueeze(1)
    return table[ids].mean(0).expand(concept.vectors, -1) + distinct
