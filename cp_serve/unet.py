"""The U-Net as serving runs it: arithmetic, memory layout, and compiled or not.

On the CPU it runs eagerly in float32: pictures are held at most 2/255 from plain diffusers'. There it is the same
function in fewer multiplications (`upsample.py`, `twins.py`), and large batches are split among threads (`split.py`).
The choices for CUDA are written and tested as far as a CPU goes, and unmeasured.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cp_serve.batch import Unet
from cp_serve.split import split_among_threads
from cp_serve.twins import share_between_twins
from cp_serve.upsample import phase_upsamplers
from services.base_model import BaseModel

Compile = Literal["none", "default", "reduce-overhead", "max-autotune"]
Precision = Literal["float32", "bfloat16"]


def prepare_unet(base: BaseModel, *, precision: Precision = "float32", compile_mode: Compile = "none") -> Unet:
    """Set a base's U-Net up for serving, in place, and return how it is run.

    bfloat16 halves memory and time where the hardware has it, at a few 255ths of difference. `reduce-overhead` replays
    CUDA graphs.
    """
    if base.unet.dtype != getattr(torch, precision):
        base.unet.to(dtype=getattr(torch, precision))
    on_cpu = base.device.type != "cuda" and compile_mode == "none"
    if on_cpu:
        phase_upsamplers(base.unet)
    if channels_last_pays(base.device):
        base.unet.to(memory_format=torch.channels_last)
    return _on_cpu(base) if on_cpu else plain_unet(base, compile_mode=compile_mode)


def channels_last_pays(device: torch.device) -> bool:
    """Whether convolutions are quickest with channels last: on CUDA, and on CPUs that lack AVX-512 (docs/log.md)."""
    return device.type == "cuda" or not torch.cpu.get_capabilities().get("avx512_f", False)


def _on_cpu(base: BaseModel) -> Unet:
    """Eagerly, twins once, large batches on threads of their own."""
    plain = plain_unet(base)
    if base.second:
        return split_among_threads(plain, torch.get_num_threads())
    twins = share_between_twins(base.unet)

    def run(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, count: int) -> Tensor:
        with twins.of(count, x_RCHW):
            return plain(x_RCHW, t_R, kv_RLK, count)

    return split_among_threads(run, torch.get_num_threads())


def plain_unet(base: BaseModel, *, compile_mode: Compile = "none") -> Unet:
    """How a base's U-Net is run as it is."""
    forward: Callable[..., Any] = base.unet
    if compile_mode != "none":
        forward = torch.compile(base.unet, mode=compile_mode, dynamic=False)

    def run(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, _: int) -> Tensor:
        output: Tensor = forward(x_RCHW, t_R, encoder_hidden_states=kv_RLK, return_dict=False)[0]
        return output

    return run


def buckets_of(capacity: int, compile_mode: Compile) -> tuple[int, ...]:
    """Numbers of rows that a batch of `capacity` images is run with. Compiled code and graphs are made for each number
    of rows, so there are few, each at most half as large again as the one before; eager code takes any.
    """
    if compile_mode == "none":
        return ()
    sizes, size = [], 1
    while size < 2 * capacity:
        sizes.append(size)
        size += max(1, size // 2)
    return (*sizes, 2 * capacity)
