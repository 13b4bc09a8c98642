"""The layers before the first cross-attention see no text: with guidance they run once for both rows of a drawing.

The rows of a drawing's negative prompt and of its prompt have the same latent and the same timestep, so that all layers
up to the first cross-attention give the same for both; and so do the skip connections that start there. They run for
the prompts' rows alone, and what they give is copied to the twins. (Not so in SDXL, which adds text to the time.)
Letters: R rows of the batch, G of them twins that come first: row r < G is the twin of row 2 G - 1 - r (`batch.py`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Twins(threading.local):
    """Which rows of the batch are twins, in this thread: others may run the same network meanwhile.

    Attributes:
        count: G; 0 outside of `of`.
    """

    count = 0
    _row_R: Tensor

    @contextmanager
    def of(self, count: int, x_RCHW: Tensor) -> Iterator[None]:
        """The first `count` rows of a batch are twins, for the body of a `with`."""
        own = torch.arange(len(x_RCHW) - count, device=x_RCHW.device)
        self.count, self._row_R = count, torch.cat([own[:count].flip(0), own])
        try:
            yield
        finally:
            self.count = 0

    def spread(self, found: Any) -> Any:
        """What was computed without the twins, tensors or tuples of them, for all rows."""
        if isinstance(found, tuple):
            return tuple(map(self.spread, found))
        return found.index_select(0, self._row_R)


class Once(nn.Module):
    """A layer that sees no text."""

    def __init__(self, layer: nn.Module, twins: Twins) -> None:
        super().__init__()
        self.layer, self.twins = layer, twins

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Any:
        """What the layer gives; `temb` is the time's embedding, where it takes one."""
        given = [part for part in (hidden_states, temb) if part is not None]
        if not self.twins.count:
            return self.layer(*given)
        return self.twins.spread(self.layer(*(part[self.twins.count :] for part in given)))


def share_between_twins(unet: Any) -> Twins:
    """Make a U-Net's layers that see no text run once for twins, in place. Again, nothing happens."""
    if isinstance(unet.conv_in, Once):
        return unet.conv_in.twins
    twins = Twins()
    unet.conv_in = Once(unet.conv_in, twins)
    for number, block in enumerate(unet.down_blocks):
        if getattr(block, "has_cross_attention", False):
            block.resnets[0] = Once(block.resnets[0], twins)
            break
        unet.down_blocks[number] = Once(block, twins)
    return twins
