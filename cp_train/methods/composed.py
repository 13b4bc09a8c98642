"""`kv` together with the diffusion-classifier methods: the penalties add, each with its own lambda. Ours.

    L = L_denoise (then L_DSC) + [ (lambda / 2) sum_j F_j (theta_j - theta*_j)^2 ] + lambda_kv L_kv

Each part alone is one flag away (`kv`, `ewc_dc`, `dsc`, `dsc_ewc_dc`).
"""

from cp_train.methods.dsc import DSC
from cp_train.methods.dsc_ewc_dc import DSCEWCDC
from cp_train.methods.ewc_dc import EWCDC
from cp_train.methods.kv import KV


class EWCDCKV(KV, EWCDC):
    """EWC DC and kv: what kv protects need not be held in the weights, so lambda is smaller (docs/log.md)."""

    name = "ewc_dc_kv"
    default_weight = 0.001


class DSCKV(KV, DSC):
    """kv in both phases of DSC."""

    name = "dsc_kv"


class DSCEWCDCKV(KV, DSCEWCDC):
    """EWC DC and kv in both phases of DSC."""

    name = "dsc_ewc_dc_kv"
