"""Random changes a picture survives: what CLIP's image towers and the judge are trained under.

Each picture is turned, sized, moved and mirrored by one affine map, then changed in light. The judge and CLIP's second
tower, which must know a thing in styles they have never seen, also see it bent out of shape, in other hues, in grey,
through a random filter or as an outline, blurred, and with a patch missing; the judge alone, two drawings blended.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_GROUND = 1.0  # white, outside the picture
_CUT = 0.3  # of the side


def moved(x_BCHW: Tensor, chance: torch.Generator, *, turn: float = 12.0) -> Tensor:
    """Turned by up to `turn` degrees, scaled by 0.75 to 1.2, shifted by up to 10%, mirrored half of the time."""
    count = len(x_BCHW)
    angle = (torch.rand(count, generator=chance) * 2 - 1) * math.radians(turn)
    scale = 1 / (0.75 + 0.45 * torch.rand(count, generator=chance))
    mirror = torch.where(_chosen(count, 0.5, chance), -1.0, 1.0)
    shift_2B = (torch.rand(2, count, generator=chance) * 2 - 1) * 0.2
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos * mirror, -sin, shift_2B[0], sin * mirror, cos, shift_2B[1]], 1).view(-1, 2, 3)
    grid = functional.affine_grid(rows, list(x_BCHW.shape), align_corners=False)
    return functional.grid_sample(x_BCHW - _GROUND, grid, align_corners=False) + _GROUND


def bent(x_BCHW: Tensor, chance: torch.Generator, *, by: float) -> Tensor:
    """Sheared, stretched and smoothly bent: every point moved by a field of this deviation (half sides)."""
    count, _, side, _ = x_BCHW.shape
    linear_B22 = torch.eye(2) + by * torch.randn(count, 2, 2, generator=chance)
    rows_B23 = torch.cat([linear_B22, torch.zeros(count, 2, 1)], 2)
    grid = functional.affine_grid(rows_B23, list(x_BCHW.shape), align_corners=False)
    field_B2HW = functional.interpolate(
        by * torch.randn(count, 2, 4, 4, generator=chance), size=side, mode="bicubic", align_corners=False
    )
    return (
        functional.grid_sample(x_BCHW - _GROUND, grid + field_B2HW.permute(0, 2, 3, 1), align_corners=False) + _GROUND
    )


def blended(x_BCHW: Tensor, y_BCHW: Tensor, chance: torch.Generator) -> Tensor:
    """Pictures with smooth parts of another picture of the same thing: what no single hand has drawn."""
    count, _, side, _ = x_BCHW.shape
    field = functional.interpolate(
        torch.randn(count, 1, 4, 4, generator=chance), size=side, mode="bicubic", align_corners=False
    )
    parts = torch.sigmoid(4 * field)
    return parts * x_BCHW + (1 - parts) * y_BCHW


def filtered(x_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """Some pictures through a random filter of their own, mixed with themselves (RandConv, arXiv 2007.13003).

    It changes colours and texture and keeps shapes. The filter's output has the picture's own mean and spread.
    """
    count, channels, side, _ = x_BCHW.shape
    size = (1, 3, 5)[int(torch.randint(3, (), generator=chance))]
    filters = torch.randn(count * channels, channels, size, size, generator=chance)
    rows = x_BCHW.reshape(1, count * channels, side, side)
    out = functional.conv2d(functional.pad(rows, (size // 2,) * 4, mode="replicate"), filters, groups=count).view_as(
        x_BCHW
    )
    mean, spread = _moments(x_BCHW)
    own_mean, own_spread = _moments(out)
    out = (out - own_mean) / own_spread * spread + mean
    keep = torch.rand(count, 1, 1, 1, generator=chance)
    return torch.where(_some(count, share, chance), keep * x_BCHW + (1 - keep) * out, x_BCHW).clamp(-1, 1)


def traced(x_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """Some pictures as dark outlines on white: the strength of their brightness's gradient."""
    padded = functional.pad(x_BCHW.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    pressure = 1 + 3 * torch.rand(len(x_BCHW), 1, 1, 1, generator=chance)
    lines = 1 - (pressure * (across.square() + down.square()).sqrt()).clamp(max=2)
    return torch.where(_some(len(x_BCHW), share, chance), lines.expand_as(x_BCHW), x_BCHW)


def relit(x_BCHW: Tensor, chance: torch.Generator, *, by: float = 0.25) -> Tensor:
    """Brighter or darker, and with more or less contrast, by up to this share."""
    gain, lift = ((torch.rand(2, len(x_BCHW), 1, 1, 1, generator=chance) * 2 - 1) * by).unbind()
    return (x_BCHW * (1 + gain) + lift * 0.5).clamp(-1, 1)


def rehued(x_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """In some pictures the colours turned about the grey axis by any angle, and some of those in grey."""
    count = len(x_BCHW)
    angle = torch.rand(count, generator=chance) * 2 * math.pi
    saturation = torch.where(_chosen(count, 0.2, chance), 0.0, 1.0)
    third, root = 1 / 3, math.sqrt(1 / 3)
    cos, sin = angle.cos() * saturation, angle.sin() * saturation
    a, b, c = cos + third * (1 - cos), third * (1 - cos) - root * sin, third * (1 - cos) + root * sin
    turn_B33 = torch.stack([a, b, c, c, a, b, b, c, a], 1).view(-1, 3, 3)
    turned = torch.einsum("bij,bjhw->bihw", turn_B33, x_BCHW).clamp(-1, 1)
    return torch.where(_some(count, share, chance), turned, x_BCHW)


def blurred(x_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """Some pictures at half the resolution, as a poor generator would draw them."""
    side = x_BCHW.shape[-1]
    soft = functional.interpolate(functional.avg_pool2d(x_BCHW, 2), size=side, mode="bilinear", align_corners=False)
    return torch.where(_some(len(x_BCHW), share, chance), soft, x_BCHW)


def cut(x_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """In some pictures a square of noise somewhere."""
    count, _, side, _ = x_BCHW.shape
    width = int(side * _CUT)
    at = torch.arange(side)
    top_B, left_B = (torch.rand(2, count, generator=chance) * (side - width)).long()
    rows = (at >= top_B[:, None]) & (at < top_B[:, None] + width)
    columns = (at >= left_B[:, None]) & (at < left_B[:, None] + width)
    square_B1HW = (rows[:, :, None] & columns[:, None, :])[:, None]
    noise = torch.randn(x_BCHW.shape, generator=chance).clamp(-1, 1)
    return torch.where(_some(count, share, chance) & square_B1HW, noise, x_BCHW)


def _moments(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    return mean, x_BCHW.std((1, 2, 3), keepdim=True) + 1e-3


def _some(count: int, share: float, chance: torch.Generator) -> Tensor:
    return _chosen(count, share, chance).view(-1, 1, 1, 1)


def _chosen(count: int, share: float, chance: torch.Generator) -> Tensor:
    return torch.rand(count, generator=chance) < share
