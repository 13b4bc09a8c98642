"""An image tower for small pictures: the judge's kind of residual network, as a vision model of transformers.

Beside the network's features f it tells which of its classes a picture shows, softmax(16 f . p_k), for words are much
nearer to each other than things are: the projection to a text tower's space then has only to say each class's word.

A vision transformer takes far more pictures than the artwork has before it tells things apart in styles that it has
not seen (docs/log.md). With a text tower it makes a `VisionTextDualEncoderModel`, which `AutoModel` opens after
`register()`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cp_train.evaluation.judge import JudgeSize, Trunk, cosine_logits


class TowerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    """Its shape, see `JudgeSize`, how many classes it has, and the side of its pictures."""

    model_type = "palimpsest-tower"

    def __init__(
        self,
        widths: tuple[int, ...] = JudgeSize.widths,
        blocks: int = 1,
        classes: int = 1,
        image_size: int = 64,
        **others: Any,
    ) -> None:
        self.widths, self.blocks, self.classes, self.image_size = list(widths), blocks, classes, image_size
        self.hidden_size = self.widths[-1] + classes
        super().__init__(**others)


class Tower(PreTrainedModel):  # type: ignore[misc]
    """Pictures [B, 3, H, W] in -1..1 to features and shares of the classes [B, D + K], its `pooler_output`."""

    config_class = TowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(JudgeSize(widths=tuple(config.widths), blocks=config.blocks))
        self.classes = nn.Parameter(0.1 * torch.randn(config.classes, config.widths[-1]))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """As torch does it."""

    def forward(self, pixel_values: Tensor, **_options: Any) -> BaseModelOutputWithPooling:
        """What `VisionTextDualEncoderModel` asks."""
        f_BD = self.trunk.features(pixel_values)
        return BaseModelOutputWithPooling(pooler_output=torch.cat([f_BD, self.logits(f_BD).softmax(-1)], dim=-1))

    def logits(self, f_BD: Tensor) -> Tensor:
        """Of its classes, [B, K]."""
        return cosine_logits(f_BD, self.classes, JudgeSize.scale)


def register() -> None:
    """Make the tower known to `AutoModel`; it may be done again."""
    AutoConfig.register(TowerConfig.model_type, TowerConfig, exist_ok=True)
    AutoModel.register(TowerConfig, Tower, exist_ok=True)
