"""An image tower for small pictures: the judge's kind of residual network, as a vision model of transformers.

A vision transformer takes far more pictures than the artwork has before it tells things apart in styles that it has
not seen (docs/log.md). With a text tower it makes a `VisionTextDualEncoderModel`, which `AutoModel` opens after
`register()`.
"""

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cp_train.evaluation.judge import JudgeSize, Trunk


class TowerConfig(PreTrainedConfig):
    """Its shape, see `JudgeSize`, and the side of its pictures."""

    model_type = "palimpsest-tower"

    def __init__(
        self, widths: tuple[int, ...] = JudgeSize.widths, blocks: int = 1, image_size: int = 64, **others: Any
    ) -> None:
        self.widths, self.blocks, self.image_size = list(widths), blocks, image_size
        self.hidden_size = self.widths[-1]
        super().__init__(**others)


class Tower(PreTrainedModel):
    """Pictures [B, 3, H, W] in -1..1 to normalised features [B, D], its `pooler_output`."""

    config_class = TowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(JudgeSize(widths=tuple(config.widths), blocks=config.blocks))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """As torch does it."""

    def forward(self, pixel_values: Tensor, **_options: Any) -> BaseModelOutputWithPooling:
        """What `VisionTextDualEncoderModel` asks."""
        return BaseModelOutputWithPooling(pooler_output=self.trunk.features(pixel_values))


def register() -> None:
    """Make the tower known to `AutoModel`; it may be done again."""
    AutoConfig.register(TowerConfig.model_type, TowerConfig, exist_ok=True)
    AutoModel.register(TowerConfig, Tower, exist_ok=True)
