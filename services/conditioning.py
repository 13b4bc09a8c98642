"""Prompt + adapter -> the keys and values of every cross-attention layer, computed once.

A prompt's text embedding e does not depend on the image or the timestep, and the adapter changes nothing but

    K, V = (W + (alpha / R) B A) e      for each layer,

so one packed tensor kv_LK per prompt is all that the denoiser ever needs to know of prompt and adapter.
A concept is written `<name>` in a prompt and takes as many token positions as it has embeddings. The result equals
that of a diffusers pipeline whose tokenizer got the concept by `add_tokens`. SDXL's second text encoder has its own
part of each embedding, and what its pooled output adds stands behind e, and behind K and V (`second_encoder.py`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.adapter import Adapter
from services.base_model import BaseModel, BaseOutline
from services.errors import InputError
from services.second_encoder import SecondEncoder

_CONCEPT = re.compile(r"<([^<>\s]{1,64})>")
_PLACEHOLDER = 0  # any ordinary id: its embedding is overwritten before anything reads it


@dataclass(frozen=True)
class TokenizedPrompt:
    """Token ids of the text encoder's full length, and where the concepts' embeddings go.

    Attributes:
        ids: token ids with begin, end and padding.
        concepts: (position, concept name, index among the concept's embeddings).
    """

    ids: tuple[int, ...]
    concepts: tuple[tuple[int, str, int], ...]


def tokenize(base: BaseOutline, prompt: str, vectors: Mapping[str, int], *, param: str = "prompt") -> TokenizedPrompt:
    """Split a prompt into ids and concepts. `vectors` says how many embeddings each known concept has.

    Raises:
        InputError: an unknown `<concept>`, or more tokens than the text encoder takes; never cut.
    """
    tokenizer = base.tokenizer
    ids: list[int] = []
    concepts: list[tuple[int, str, int]] = []
    for index, part in enumerate(_CONCEPT.split(prompt)):
        if index % 2 == 0:
            ids += tokenizer(part, add_special_tokens=False, verbose=False).input_ids if part.strip() else []
            continue
        _check_known(part, vectors, param)
        concepts += [(len(ids) + j + 1, part, j) for j in range(vectors[part])]
        ids += [_PLACEHOLDER] * vectors[part]
    room = tokenizer.model_max_length - 2
    if len(ids) > room:
        raise InputError(
            f"{param}: {len(ids)} tokens, but this base's text encoder takes {room}; shorten it.", param=param
        )
    padding = [tokenizer.pad_token_id] * (room - len(ids))
    return TokenizedPrompt((tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding), tuple(concepts))


def _check_known(name: str, vectors: Mapping[str, int], param: str) -> None:
    if name not in vectors:
        known = ", ".join(f"<{concept}>" for concept in vectors) or "none yet"
        raise InputError(f"{param}: <{name}> is not a concept of this version (it knows: {known}).", param=param)


def embed(base: BaseModel, prompts: Sequence[TokenizedPrompt], tokens: Mapping[str, Tensor]) -> Tensor:
    """Text embeddings context_BLD, float32, differentiable in `tokens` (concept name -> [vectors, width]).

    Of SDXL they are [B, L, D + E]: behind e is the vector that the U-Net adds to its time embedding.
    """
    ids = torch.tensor([prompt.ids for prompt in prompts], device=base.device)
    if base.second:
        return _embed_twice(base, base.second, ids, prompts, tokens)
    with _concept_rows(base.text_encoder, prompts, tokens):
        context: Tensor = base.text_encoder(ids).last_hidden_state
    return context.float()


def _embed_twice(
    base: BaseModel,
    second: SecondEncoder,
    ids_BL: Tensor,
    prompts: Sequence[TokenizedPrompt],
    tokens: Mapping[str, Tensor],
) -> Tensor:
    end_BL = ids_BL == base.tokenizer.eos_token_id
    behind_BL = end_BL.cumsum(1) > end_BL.int()  # where the first tokenizer put its padding
    widths = [token_table(encoder).shape[1] for encoder in base.text_encoders]
    parts = {name: rows.split(widths, dim=1) for name, rows in tokens.items()}
    outputs = []
    for index, encoder in enumerate(base.text_encoders):
        own = ids_BL.masked_fill(behind_BL, second.pad) if index else ids_BL
        with _concept_rows(encoder, prompts, {name: part[index] for name, part in parts.items()}):
            outputs.append(encoder(own, output_hidden_states=True))
    context_BLD = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    pooled_BD = outputs[1].text_embeds
    if second.zero_empty:
        said_B = (~end_BL[:, 1]).to(context_BLD)
        context_BLD, pooled_BD = context_BLD * said_B[:, None, None], pooled_BD * said_B[:, None]
    added_BLE = second.added(pooled_BD).unsqueeze(1).expand(-1, ids_BL.shape[1], -1)
    return torch.cat([context_BLD, added_BLE], -1).float()


def token_table(encoder: nn.Module) -> Tensor:
    """The input embeddings of a text encoder, [vocabulary, width]."""
    table: Tensor = encoder.get_input_embeddings().weight  # type: ignore[operator]
    return table


@contextmanager
def _concept_rows(
    encoder: nn.Module, prompts: Sequence[TokenizedPrompt], tokens: Mapping[str, Tensor]
) -> Iterator[None]:
    """Put the concepts' embeddings in their places while the encoder runs. One thread per encoder."""
    places = [(row, *place) for row, prompt in enumerate(prompts) for place in prompt.concepts]
    if not places:
        yield
        return
    rows = torch.tensor([place[0] for place in places])
    columns = torch.tensor([place[1] for place in places])
    values = torch.stack([tokens[name][index] for _, _, name, index in places])

    def overwrite(_module: nn.Module, _args: object, embedded_BLD: Tensor) -> Tensor:
        where = (rows.to(embedded_BLD.device), columns.to(embedded_BLD.device))
        return embedded_BLD.index_put(where, values.to(embedded_BLD))

    embedding: nn.Module = encoder.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(overwrite)
    try:
        yield
    finally:
        handle.remove()


def project(base: BaseModel, context_BLD: Tensor, down_PRD: Tensor, up_KR: Tensor, scale: float) -> Tensor:
    """Packed keys and values kv_BLK of every layer: W e + scale * B A e."""
    return pack(base, context_BLD, scale * delta(base, context_BLD, down_PRD, up_KR))


def pack(base: BaseModel, context_BLD: Tensor, change_BLK: Tensor | None = None) -> Tensor:
    """What the U-Net takes: W e, and what an adapter changes of it; behind them what stood behind e."""
    kv_BLK = functional.linear(spoken(base, context_BLD), base.weight_KD)
    if change_BLK is not None:
        kv_BLK = kv_BLK + change_BLK
    added = context_BLD[..., base.weight_KD.shape[1] :]
    return torch.cat([kv_BLK, added], -1) if added.shape[-1] else kv_BLK


def spoken(base: BaseModel, context_BLD: Tensor) -> Tensor:
    """e alone: the columns of text embeddings that keys and values are made of."""
    return context_BLD[..., : base.weight_KD.shape[1]]


def delta(base: BaseModel, context_BLD: Tensor, down_PRD: Tensor, up_KR: Tensor) -> Tensor:
    """B A e of every layer, packed [B, L, K]; what the adapter adds, before its scale."""
    inner_BLPR = torch.einsum("bld,prd->blpr", spoken(base, context_BLD), down_PRD)
    ups = up_KR.split(base.layout.widths)
    return torch.cat([functional.linear(inner_BLPR[:, :, p], up) for p, up in enumerate(ups)], dim=-1)


def condition(base: BaseModel, prompts: Sequence[str], adapter: Adapter | None, *, param: str = "prompt") -> Tensor:
    """Keys and values kv_BLK of some prompts under one adapter (None: the base itself).

    Raises:
        InputError: see `tokenize`.
    """
    tokens = adapter.tokens if adapter else {}
    vectors = {name: len(rows) for name, rows in tokens.items()}
    tokenized = [tokenize(base, prompt, vectors, param=param) for prompt in prompts]
    with torch.no_grad():
        context = embed(base, tokenized, tokens)
        if adapter is None:
            return pack(base, context)
        return project(base, context, adapter.down_PRD, adapter.up_KR, adapter.scale)
