"""DSC with the EWC DC penalty in both phases: the whole of Jha et al., arXiv 2410.00700.

phase 1: L_denoise + EWC DC       phase 2: L_DSC + EWC DC       theta* = LoRA_{n-1} in both
"""

from cp_train.methods.ewc_dc import EWCDC


class DSCEWCDC(EWCDC):
    """DSC; Fisher information of the diffusion-classifier objective."""

    name = "dsc_ewc_dc"
    distils = True
