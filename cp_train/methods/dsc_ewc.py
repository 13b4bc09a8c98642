"""DSC with the EWC penalty in both phases (Jha et al., arXiv 2410.00700).

phase 1: L_denoise + EWC          phase 2: L_DSC + EWC          theta* = LoRA_{n-1} in both
"""

from cp_train.methods.ewc import EWC


class DSCEWC(EWC):
    """DSC; Fisher information of the denoising loss."""

    name = "dsc_ewc"
    distils = True
