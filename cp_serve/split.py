"""Large batches on the CPU: each thread runs the whole network for its share of the drawings.

Threads that share every operation wait for each other at its end, some hundred times a step; threads with rows of their
own meet once. Small batches are not split: there is too little to do in each operation.
Letters: R rows of the batch, of which G are negative prompts and N = R - G prompts (`batch.py`), S rows of a share.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from cp_serve.batch import Unet

_LEAST = 4
"""Rows a thread, at least; measured with `python -m cp_serve.bench.step`."""


def split_among_threads(unet: Unet, threads: int) -> Unet:
    """The same, on so many threads of its own where the batch is large enough."""
    if threads == 1:
        return unet
    pool = single_threads(threads)

    @torch.inference_mode()
    def part(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, row_S: Tensor, count: int) -> Tensor:
        return unet(x_RCHW[row_S], t_R[row_S], kv_RLK[row_S], count)

    def run(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, count: int) -> Tensor:
        if len(x_RCHW) < _LEAST * threads:
            return unet(x_RCHW, t_R, kv_RLK, count)
        shares = list(shares_of(len(x_RCHW), count, threads))
        found_RCHW = torch.cat(list(pool.map(lambda share: part(x_RCHW, t_R, kv_RLK, *share), shares)))
        row_R = torch.cat([row_S for row_S, _ in shares])
        return torch.empty_like(found_RCHW).index_copy_(0, row_R, found_RCHW)

    return run


def shares_of(rows: int, guided: int, count: int) -> Iterator[tuple[Tensor, int]]:
    """The rows of each of `count` shares, in a batch's order, and how many of them are negative prompts.

    A drawing stays whole; otherwise shares are as even as can be.
    """
    drawings = rows - guided
    taken = list(accumulate([2] * guided + [1] * (drawings - guided), initial=0))
    edges = [_nearest(taken, rows * number / count) for number in range(count + 1)]
    for first, end in pairwise(edges):
        negative = range(guided - min(end, guided), guided - min(first, guided))
        yield torch.tensor([*negative, *range(guided + first, guided + end)]), len(negative)


def _nearest(ascending: list[int], value: float) -> int:
    """Where the number nearest to a value stands."""
    return min(range(len(ascending)), key=lambda place: abs(ascending[place] - value))


def single_threads(count: int) -> ThreadPoolExecutor:
    """Threads whose operations are each their own; whoever comes later has as many as before."""
    before, all_there = torch.get_num_threads(), threading.Barrier(count)
    pool = ThreadPoolExecutor(count, thread_name_prefix="rows", initializer=_work_alone)
    list(pool.map(lambda _: all_there.wait(), range(count)))
    torch.set_num_threads(before)
    return pool


def _work_alone() -> None:
    """Keep this thread's operations to itself.

    torch gives a thread the process's number at its first operation, also over one set before; so it is asked first.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
