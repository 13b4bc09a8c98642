"""Textual inversion (Gal et al., arXiv 2208.01618): only the new embedding V*_n is trained, the weights stay.

    V*_n = argmin_V L_denoise(V)

It cannot forget, since earlier embeddings are frozen and nothing else changes; it hardly learns.
"""

from cp_train.methods.base import Method


class TextualInversion(Method):
    """Nothing but the new embedding."""

    name = "textual_inversion"
    token_only = True
