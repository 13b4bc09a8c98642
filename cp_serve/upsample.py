"""Doubling a feature map and convolving it, with 4/9 of the multiplications: the same function in another order.

Nearest-neighbour upsampling writes each pixel four times, so that a 3x3 convolution behind it multiplies one number by
up to four weights. With y the convolution's input, weights W_{-1}, W_0, W_1 along one axis and x the small map, the
output at an even and at an odd place are

    y_{2i} = W_{-1} x_{i-1} + (W_0 + W_1) x_i          y_{2i+1} = (W_{-1} + W_0) x_i + W_1 x_{i+1}

and along both axes four convolutions of 2x2 with sums of the weights, one for each phase of the output (Shi et al.,
arXiv 1609.07009, write it for learned weights). Zeros outside of x are zeros outside of y. Letters: B rows, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PhasedUpsample(nn.Module):
    """What a diffusers `Upsample2D` with a 3x3 convolution does.

    Args:
        convolution: its convolution.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        for name, weight in zip(_PHASES, _phases(convolution.weight.detach()), strict=True):
            self.register_buffer(name, weight, persistent=False)
        self.bias = convolution.bias

    def forward(self, x_BCHW: Tensor, output_size: object = None) -> Tensor:
        """[B, C, H, W] -> [B, C', 2H, 2W]."""
        assert output_size is None
        batch, _, height, width = x_BCHW.shape
        padded = functional.pad(x_BCHW, (1, 1, 1, 1))
        out = x_BCHW.new_empty(batch, len(self.get_buffer(_PHASES[0])), 2 * height, 2 * width)
        for name in _PHASES:
            down, right = int(name[-2]), int(name[-1])
            window = padded[:, :, down : down + height + 1, right : right + width + 1]
            out[:, :, down::2, right::2] = functional.conv2d(window, self.get_buffer(name), self.bias)
        return out


_PHASES = ("phase_00", "phase_01", "phase_10", "phase_11")


def _phases(weight: Tensor) -> list[Tensor]:
    """Weights [C', C, 2, 2] of the four phases, row by row."""
    rows = _split(weight, 2)
    return [part.contiguous() for row in rows for part in _split(row, 3)]


def _split(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the two weights of even places and those of odd ones."""
    before, here, after = weight.unbind(axis)
    return torch.stack([before, here + after], axis), torch.stack([before + here, after], axis)


def phase_upsamplers(unet: Any) -> int:
    """Replace every upsampling that can be, in place; returns how many. Again, nothing happens."""
    from diffusers.models.upsampling import Upsample2D

    side = int(unet.config.sample_size)
    if side % 2**unet.num_upsamplers:
        return 0  # then some of them do not double
    found = [(name, module) for name, module in unet.named_modules() if isinstance(module, Upsample2D)]
    plain = [(name, module.conv) for name, module in found if _is_plain(module)]
    for name, convolution in plain:
        parent, _, child = name.rpartition(".")
        unet.get_submodule(parent).register_module(child, PhasedUpsample(convolution))
    return len(plain)


def _is_plain(module: Any) -> bool:
    """Whether it is nearest-neighbour doubling and a 3x3 convolution, and nothing else."""
    convolution = getattr(module, "conv", None)
    kinds = (module.use_conv, module.use_conv_transpose, module.interpolate, module.norm)
    if kinds != (True, False, True, None) or not isinstance(convolution, nn.Conv2d):
        return False
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
