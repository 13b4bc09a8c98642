"""`python -m cp_serve.bench.step`: what a step of the U-Net costs, by how it is run.

For each way and each number of rows: milliseconds a row by the clock, and by the CPU, which another's work on the same
machine disturbs less. The best of several turns, the ways taking turns.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cp_serve.batch import Unet
from cp_serve.split import single_threads
from cp_serve.unet import prepare_unet
from services.base_model import BaseModel, load_base

_Inputs = tuple[Tensor, Tensor, Tensor]
_Run = Callable[[_Inputs], object]


def ways(reference: str, *, compiled: bool) -> dict[str, tuple[BaseModel, _Run]]:
    """Name -> a base, and how its U-Net is run."""
    base = load_base(reference)
    last, halved = load_base(reference), load_base(reference, dtype=torch.bfloat16)
    last.unet.to(memory_format=torch.channels_last)
    one = single_threads(1)
    served = load_base(reference)
    unet = prepare_unet(served)
    found: dict[str, tuple[BaseModel, _Run]] = {
        "float32": (base, lambda inputs: _call(base.unet, inputs)),
        "float32, as served, all guided": (served, lambda inputs: _serve(unet, inputs)),
        "float32, one thread": (base, lambda inputs: one.submit(_call, base.unet, inputs).result()),
        "float32, channels last": (last, lambda inputs: _call(last.unet, inputs)),
        "float32, attention written out": (base, lambda inputs: _math(base.unet, inputs)),
        "bfloat16": (halved, lambda inputs: _call(halved.unet, inputs)),
    }
    if compiled:
        code = torch.compile(base.unet, dynamic=False)
        found["float32, compiled"] = (base, lambda inputs: _call(code, inputs))
    return found


@torch.inference_mode()
def _call(unet: Any, inputs: _Inputs) -> object:
    x_RCHW, t_R, kv_RLK = inputs
    return unet(x_RCHW, t_R, encoder_hidden_states=kv_RLK, return_dict=False)[0]


@torch.inference_mode()
def _serve(unet: Unet, inputs: _Inputs) -> object:
    return unet(*inputs, len(inputs[0]) // 2)


def _math(unet: Any, inputs: _Inputs) -> object:
    with sdpa_kernel(SDPBackend.MATH):
        return _call(unet, inputs)


def inputs_of(base: BaseModel, rows: int) -> _Inputs:
    """Noise, timesteps, and keys and values for so many rows."""
    side, dtype = int(base.unet.config.sample_size), base.unet.dtype
    x_RCHW = torch.randn(rows, base.latent_channels, side, side, dtype=dtype)
    kv_RLK = torch.randn(rows, base.tokenizer.model_max_length, base.packed_width, dtype=dtype)
    return x_RCHW, torch.linspace(1, 900, rows), kv_RLK


def measure(
    found: dict[str, tuple[BaseModel, _Run]], rows: list[int], turns: int
) -> dict[tuple[str, int], tuple[float, float]]:
    """(way, rows) -> milliseconds a row by the clock, and by the CPU."""
    best: dict[tuple[str, int], tuple[float, float]] = defaultdict(lambda: (float("inf"), float("inf")))
    for _ in range(turns + 1):  # the first turn warms up
        for name, (base, run) in found.items():
            for count in rows:
                inputs = inputs_of(base, count)
                clock, cpu = time.perf_counter(), time.process_time()
                run(inputs)
                spent = (time.perf_counter() - clock, time.process_time() - cpu)
                old = best[name, count]
                best[name, count] = min(old[0], 1000 * spent[0] / count), min(old[1], 1000 * spent[1] / count)
    return best


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(prog="python -m cp_serve.bench.step", description="A step of the U-Net.")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="take minutes to compile, too")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    found = ways(flags.base, compiled=flags.compile)
    best = measure(found, flags.rows, flags.turns)
    print("| way | " + " | ".join(f"{count} rows: ms a row (CPU)" for count in flags.rows) + " |")
    print("|---" * (len(flags.rows) + 1) + "|")
    for name in found:
        cells = (best[name, count] for count in flags.rows)
        print(f"| {name} | " + " | ".join(f"{clock:.1f} ({cpu:.1f})" for clock, cpu in cells) + " |")


if __name__ == "__main__":
    main()
