"""Attention of a U-Net whose text projections were taken out.

The U-Net is called with `encoder_hidden_states = kv_BLK`: for each prompt token the keys and values of all
cross-attention layers side by side. Each layer's processor cuts its own columns. So the U-Net is a pure function of
(x, t, kv): no weight of it knows which adapter it draws for, and rows of one batch may come from different adapters.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from services.adapter import Layout


def _attend(q_BHNE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor) -> Tensor:
    """Softmax attention. Written out where CPU gradients are needed: the fused kernel's backward is slower there."""
    if q_BHNE.is_cuda or not torch.is_grad_enabled():
        return functional.scaled_dot_product_attention(q_BHNE, k_BHLE, v_BHLE)
    weights = (q_BHNE @ k_BHLE.transpose(-1, -2) * q_BHNE.shape[-1] ** -0.5).softmax(-1)
    out: Tensor = weights @ v_BHLE
    return out


def _heads(x_BLC: Tensor, heads: int) -> Tensor:
    x_BLHE: Tensor = x_BLC.unflatten(-1, (heads, -1))
    return x_BLHE.transpose(1, 2)


class SelfAttention:
    """Processor of `attn1`."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Attend among the pixels. `hidden_states` is [B, pixels, channels]."""
        parts = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        out = _attend(*(_heads(part, attn.heads) for part in parts))
        return _project_out(attn, out)


class PackedCrossAttention:
    """Processor of `attn2`: reads its own columns of the packed keys and values."""

    def __init__(self, k_columns: slice, v_columns: slice) -> None:
        self.k_columns = k_columns
        self.v_columns = v_columns

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object, **__: object
    ) -> Tensor:
        """Attend from the pixels to the prompt. `encoder_hidden_states` is kv_BLK."""
        q = _heads(attn.to_q(hidden_states), attn.heads)
        k = _heads(encoder_hidden_states[..., self.k_columns], attn.heads)
        v = _heads(encoder_hidden_states[..., self.v_columns], attn.heads)
        return _project_out(attn, _attend(q, k, v))


def _project_out(attn: Any, out_BHNE: Tensor) -> Tensor:
    out: Tensor = attn.to_out[0](out_BHNE.transpose(1, 2).flatten(2))
    return out


def install_processors(unet: Any, layout: Layout) -> None:
    """Make every cross-attention of `unet` take its keys and values from the packed columns of `layout`."""
    columns = dict(_columns(layout))
    processors: dict[str, SelfAttention | PackedCrossAttention] = {}
    for name in unet.attn_processors:
        module = name.removesuffix(".processor")
        if module.endswith(".attn2"):
            processors[name] = PackedCrossAttention(columns[f"{module}.to_k"], columns[f"{module}.to_v"])
        else:
            processors[name] = SelfAttention()
    unet.set_attn_processor(processors)


def _columns(layout: Layout) -> Iterator[tuple[str, slice]]:
    start = 0
    for projection in layout.projections:
        yield projection.name, slice(start, start + projection.width)
        start += projection.width
