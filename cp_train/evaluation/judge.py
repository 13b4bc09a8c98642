"""The judge's network: pictures to features that tell things apart; its training is in `cp_train/pretrain/judge.py`.

It shares nothing with the generator: no weights, no text, no latents. Residual blocks with group normalisation, mean
pooling to a feature f, and a cosine classifier (arXiv 1801.09414): logit_k = s f . w_k / (|f| |w_k|). The normalised f
is what all metrics compare.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class JudgeSize:
    """Shape of the network."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 1
    scale: float = 16.0
    """s, the sharpness of the cosine classifier."""


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


class Judge(nn.Module):
    """Pictures [B, 3, 64, 64] in -1..1 to features and to concepts."""

    def __init__(self, config: JudgeSize, codes: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.codes = config, codes
        ins = (config.widths[0], *config.widths[:-1])
        stages = [
            self._stage(i, o, 1 if n == 0 else 2) for n, (i, o) in enumerate(zip(ins, config.widths, strict=True))
        ]
        self.stem = nn.Conv2d(3, config.widths[0], 5, 2, 2)
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(8, config.widths[-1])
        self.classes = nn.Parameter(torch.randn(len(codes), config.widths[-1]) * 0.1)

    def _stage(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(self.config.blocks - 1)))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Normalised features [B, D]."""
        return self.pooled(self.stages(self.stem(x_BCHW)))

    def pooled(self, x_BDHW: Tensor) -> Tensor:
        """Normalised features [B, D] of what the last stage says."""
        f_BD = functional.silu(self.norm(x_BDHW)).mean((2, 3))
        return functional.normalize(f_BD.float(), dim=-1)

    def logits(self, f_BD: Tensor) -> Tensor:
        """Logits [B, K] of normalised features, in the order of `codes`."""
        return self.config.scale * f_BD @ functional.normalize(self.classes, dim=-1).T

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, K] in the order of `codes`."""
        return self.logits(self.features(x_BCHW))

    def save(self, folder: Path) -> None:
        """Write `judge.safetensors` (float16) and `config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "judge.safetensors")
        facts = {"widths": self.config.widths, "blocks": self.config.blocks, "scale": self.config.scale}
        (folder / "config.json").write_text(json.dumps(facts | {"codes": self.codes}, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """The judge `save` wrote, in float32 and evaluation mode."""
        facts = json.loads((folder / "config.json").read_text("utf-8"))
        config = JudgeSize(widths=tuple(facts["widths"]), blocks=facts["blocks"], scale=facts["scale"])
        judge = cls(config, tuple(facts["codes"]))
        judge.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
        return judge.eval()
