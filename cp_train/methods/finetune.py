"""Sequential fine-tuning: the loss is L_denoise alone. The baseline that forgets.

It stores a Fisher information all the same, so that the next task of the lineage may use another method.
"""

from cp_train.methods.base import Method


class Finetune(Method):
    """No regularization."""

    name = "finetune"
