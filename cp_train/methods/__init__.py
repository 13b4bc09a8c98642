"""The learning methods, one file each.

To add one: write its file and its line here, and, if lineages may be learned by it, its name in `services/methods.py`.
"""

from collections.abc import Sequence

from torch import Tensor

from cp_train.methods.base import Conditioner, Memory, Method
from cp_train.methods.clora import CLoRA
from cp_train.methods.clora_shared import CLoRAShared
from cp_train.methods.composed import DSCEWCDCKV, DSCKV, EWCDCKV
from cp_train.methods.custom_diffusion import CustomDiffusion, CustomDiffusionMerge
from cp_train.methods.dsc import DSC
from cp_train.methods.dsc_ewc import DSCEWC
from cp_train.methods.dsc_ewc_dc import DSCEWCDC
from cp_train.methods.ewc import EWC
from cp_train.methods.ewc_dc import EWCDC
from cp_train.methods.finetune import Finetune
from cp_train.methods.joint import Joint
from cp_train.methods.kv import KV
from cp_train.methods.per_concept import PerConceptLoRA
from cp_train.methods.textual_inversion import TextualInversion
from cp_train.methods.vera import EWCDCVera, EWCVera, FinetuneVera
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition as condition_adapter
from services.errors import InputError
from services.methods import METHODS as PRODUCT
from services.methods import no_such_method

_ALL = (
    *(EWCDCKV, EWCDC, EWC, DSC, DSCEWC, DSCEWCDC, KV, DSCKV, DSCEWCDCKV, CLoRAShared, TextualInversion, Finetune),
    *(CLoRA, CustomDiffusion, CustomDiffusionMerge, PerConceptLoRA, Joint, FinetuneVera, EWCVera, EWCDCVera),
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
DEFAULT = EWCDCKV.name

__all__ = ["DEFAULT", "METHODS", "PRODUCT", "Memory", "Method", "condition", "find_method", "product_method"]


def find_method(name: str) -> type[Method]:
    """The method of that name. Raises `InputError` naming those there are."""
    if name not in METHODS:
        raise no_such_method(name)
    return METHODS[name]


def product_method(name: str) -> type[Method]:
    """The method of that name, if a lineage can be learned by it. Raises `InputError` saying why not."""
    method = find_method(name)
    if method.benchmark_only is not None:
        raise InputError(
            f"method: {name} is for the benchmark only, for {method.benchmark_only}; choose one of "
            f"{', '.join(PRODUCT)}.",
            param="method",
        )
    return method


def condition(base: BaseModel, prompts: Sequence[str], model: Adapter | Conditioner) -> Tensor:
    """Keys and values kv_PLK of some prompts under whatever a method made (`Method.model`)."""
    return condition_adapter(base, prompts, model) if isinstance(model, Adapter) else model.condition(prompts)
