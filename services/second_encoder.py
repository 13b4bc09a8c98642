"""What Stable Diffusion XL adds to the layout of 1.x and 2.x (Podell et al., arXiv 2307.01952).

Two text encoders read the prompt, and e is the output of their last layers but one, side by side. The U-Net adds to its
time embedding a vector

    a = MLP([pooled, sin-cos(original size, crop corner, target size)])      [E]

with pooled from the second encoder. a depends on the prompt alone, so it travels behind the packed keys and values, in
columns of its own, and the U-Net stays a function of (x, t, kv). The sizes are those of the base's own pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("tokenizer_2", "text_encoder_2")
SIZES = 6
"""Numbers about the picture: two sizes and a corner."""


@dataclass(frozen=True, eq=False)
class SecondEncoder:
    """The second text encoder and the vector that is made of its pooled embedding.

    Attributes:
        text_encoder: its model.
        pad: what its tokenizer fills a prompt up with; else both tokenizers are the same.
        addition: the U-Net's MLP.
        sizes_F: the sin-cos embedding of the picture's sizes.
        zero_empty: the empty prompt's embeddings are zeros, as the base was trained for guidance.
    """

    text_encoder: nn.Module
    pad: int
    addition: nn.Module
    sizes_F: Tensor
    zero_empty: bool

    @property
    def width(self) -> int:
        """E."""
        return int(self.addition.linear_2.out_features)  # type: ignore[union-attr, arg-type]

    def added(self, pooled_BD: Tensor) -> Tensor:
        """a of every prompt, [B, E]."""
        sizes_BF = self.sizes_F.to(pooled_BD).expand(len(pooled_BD), -1)
        a_BE: Tensor = self.addition(torch.cat([pooled_BD, sizes_BF], 1))
        return a_BE


class PackedAddition(nn.Module):
    """In the place of the U-Net's MLP: reads a from behind the packed keys and values."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def forward(self, kv_BLK: Tensor) -> Tensor:
        """a, [B, E]; it is the same at every token."""
        return kv_BLK[:, 0, self.start :]


def is_xl(unet: Any) -> bool:
    """Whether a U-Net is conditioned as SDXL's are."""
    return bool(unet.config.addition_embed_type == "text_time")


def load_second(
    directory: Path, unet: Any, image_size: int, keys: int, *, zero_empty: bool, **load: Any
) -> SecondEncoder:
    """Read the second encoder, and let `unet` read a from behind `keys` columns of keys and values."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    encoder = CLIPTextModelWithProjection.from_pretrained(directory / "text_encoder_2", **load)
    tokenizer = CLIPTokenizer.from_pretrained(directory / "tokenizer_2", local_files_only=True)
    sizes = torch.tensor([image_size, image_size, 0, 0, image_size, image_size])
    addition = unet.add_embedding
    unet.add_embedding = PackedAddition(keys)
    unet.register_to_config(addition_embed_type="text")  # the kind that is given `encoder_hidden_states`
    return SecondEncoder(encoder, tokenizer.pad_token_id, addition, unet.add_time_proj(sizes).flatten(), zero_empty)
