"""EWC with diffusion-classifier scores (Jha et al., arXiv 2410.00700): EWC whose Fisher information comes from

    L_F = L_denoise + alpha [ H(1_n, P) - beta mean_{i != n} H(1_i, P) ]

P: diffusion-classifier scores over the current concept, the pretrained concept c^0 and up to k earlier concepts
(`services/scores.py`); H: cross-entropy. So a weight counts as important when it decides which concept a picture shows,
not only how well it is drawn. L_F shapes F and nothing descends it. alpha = 1 and beta = 0.5 are ours.
At beta = 1 the softmax's normaliser cancels and the term is the linear contrast mean_{i != n} logit_i - logit_n,
unbounded.
"""

from cp_train.methods.ewc import EWC


class EWCDC(EWC):
    """EWC with the Fisher information of the diffusion-classifier objective. The default."""

    name = "ewc_dc"
    contrast = 1.0
