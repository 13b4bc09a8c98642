"""The judge's network: pictures to features that tell things apart; its training is in `cp_train/pretrain/judge.py`.

It shares nothing with the generator: no weights, no text, no latents. A network is residual blocks with group
normalisation, mean pooling to a feature f, and a cosine classifier (arXiv 1801.09414), logit_k = s f w_k / |f| |w_k|.
Networks that were trained apart are asked together, each about four views of a picture: as it is, mirrored, and both
somewhat smaller. Their normalised features side by side are what all metrics compare.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

_SMALLER = 0.85
_GROUND = 1.0


@dataclass(frozen=True, kw_only=True)
class JudgeSize:
    """Shape of its networks, and how many there are."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 1
    scale: float = 16.0
    """s, the sharpness of the cosine classifier."""
    members: int = 2


class Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with a 1x1 on the short way where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        inner = functional.silu(self.norm1(x_BCHW))
        short = x_BCHW if isinstance(self.short, nn.Identity) else self.short(inner)
        out: Tensor = short + self.conv2(functional.silu(self.norm2(self.conv1(inner))))
        return out


class Trunk(nn.Module):
    """Pictures [B, 3, 64, 64] in -1..1 to features [B, D]."""

    def __init__(self, size: JudgeSize) -> None:
        super().__init__()
        widths = size.widths
        ins = (widths[0], *widths[:-1])
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.stages = nn.Sequential(
            *(_stage(i, o, 1 if n == 0 else 2, size.blocks) for n, (i, o) in enumerate(zip(ins, widths, strict=True)))
        )
        self.norm = nn.GroupNorm(8, widths[-1])

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Normalised features [B, D]."""
        return self.pooled(self.stages(self.stem(x_BCHW)))

    def pooled(self, x_BDHW: Tensor) -> Tensor:
        """Normalised features [B, D] of what the last stage says."""
        f_BD = functional.silu(self.norm(x_BDHW)).mean((2, 3))
        return functional.normalize(f_BD.float(), dim=-1)


class Network(Trunk):
    """Pictures [B, 3, 64, 64] in -1..1 to features [B, D] and to logits [B, K]."""

    def __init__(self, size: JudgeSize, classes: int) -> None:
        super().__init__(size)
        self.scale = size.scale
        self.classes = nn.Parameter(torch.randn(classes, size.widths[-1]) * 0.1)

    def logits(self, f_BD: Tensor) -> Tensor:
        """Logits [B, K] of normalised features."""
        return cosine_logits(f_BD, self.classes, self.scale)


def cosine_logits(f_BD: Tensor, classes_KD: Tensor, scale: float) -> Tensor:
    """Logits [B, K] of normalised features by a cosine classifier."""
    return scale * f_BD @ functional.normalize(classes_KD, dim=-1).T


class Judge(nn.Module):
    """Pictures [B, 3, 64, 64] in -1..1 to features [B, M D] and to concepts."""

    def __init__(self, size: JudgeSize, codes: tuple[str, ...]) -> None:
        super().__init__()
        self.size, self.codes = size, codes
        self.members = nn.ModuleList(Network(size, len(codes)) for _ in range(size.members))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Normalised features [B, M D]: what each network finds in all views, each as weighty as the others."""
        views = _views(x_BCHW)
        found = [torch.stack([network.features(view) for view in views]).sum(0) for network in self._networks]
        return functional.normalize(torch.cat([functional.normalize(f_BD, dim=-1) for f_BD in found], 1), dim=-1)

    @property
    def prototypes(self) -> Tensor:
        """The normalised features [K, M D] that stand for the concepts, in the order of `codes`."""
        each = [functional.normalize(network.classes, dim=-1) for network in self._networks]
        return torch.cat(each, 1) / math.sqrt(len(each))

    @property
    def _networks(self) -> list[Network]:
        return [network for network in self.members if isinstance(network, Network)]

    def save(self, folder: Path) -> None:
        """Write `judge.safetensors` (float16) and `config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "judge.safetensors")
        facts = {field.name: getattr(self.size, field.name) for field in fields(JudgeSize)}
        (folder / "config.json").write_text(json.dumps(facts | {"codes": self.codes}, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """The judge `save` wrote, in float32 and evaluation mode."""
        facts = json.loads((folder / "config.json").read_text("utf-8"))
        codes = tuple(facts.pop("codes"))
        judge = cls(JudgeSize(**facts | {"widths": tuple(facts["widths"])}), codes)
        judge.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
        return judge.eval()


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _views(x_BCHW: Tensor) -> list[Tensor]:
    side = x_BCHW.shape[-1]
    margin = round(side * (1 - _SMALLER) / 2)
    small = functional.interpolate(x_BCHW, size=side - 2 * margin, mode="bilinear", antialias=True)
    smaller = functional.pad(small, (margin,) * 4, value=_GROUND)
    return [x_BCHW, x_BCHW.flip(-1), smaller, smaller.flip(-1)]
