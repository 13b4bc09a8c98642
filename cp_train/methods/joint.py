"""Joint training: the images of all concepts at once, one LoRA and all embeddings from the bare base.

    L = mean over concepts' images of L_denoise

The upper bound that breaks the rules: earlier images are gone when a concept comes.
"""

from cp_train.methods.base import Method


class Joint(Method):
    """All concepts together."""

    name = "joint"
    alone = True
    replays = True
    benchmark_only = "it needs the images of every earlier concept"
