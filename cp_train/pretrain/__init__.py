"""Makes the embedded base model and the judge from licensed artwork: `python -m cp_train.pretrain`.

Shape letters used in this package: N pictures of a set, B batch, C channels, H and W pixels or latent cells,
L tokens, D embedding width, K classes.
"""
