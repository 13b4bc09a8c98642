"""A batch split among threads is the same batch."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from cp_serve.batch import Unet
from cp_serve.split import shares_of, split_among_threads


def echo(seen: list[tuple[int, int]]) -> Unet:
    """A network whose output tells row, time, text and twins; it checks that twins are where it is told."""

    def unet(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, count: int) -> Tensor:
        seen.append((len(x_RCHW), count))
        assert torch.equal(x_RCHW[:count], x_RCHW[count : 2 * count].flip(0))
        return x_RCHW + t_R.view(-1, 1, 1, 1) + kv_RLK.mean((1, 2)).view(-1, 1, 1, 1)

    return unet


def batch(rows: int, guided: int) -> tuple[Tensor, Tensor, Tensor, int]:
    torch.manual_seed(rows)
    x_RCHW, t_R, kv_RLK = torch.randn(rows, 2, 3, 3), torch.rand(rows), torch.randn(rows, 4, 5)
    for given in (x_RCHW, t_R):
        given[:guided] = given[guided : 2 * guided].flip(0)
    return x_RCHW, t_R, kv_RLK, guided


@pytest.mark.parametrize("rows", [8, 9, 16, 33])
@pytest.mark.parametrize("part", [0, 0.3, 0.5])
@pytest.mark.parametrize("threads", [2, 3])
def test_a_split_batch_gives_what_the_whole_gives(rows: int, part: float, threads: int) -> None:
    seen: list[tuple[int, int]] = []
    given = batch(rows, int(rows * part))
    whole = echo([])(*given)
    assert torch.equal(split_among_threads(echo(seen), threads)(*given), whole)
    assert len(seen) == (threads if rows >= 4 * threads else 1)
    assert sum(count for _, count in seen) == given[3], "guided drawings stay whole"


@pytest.mark.parametrize(("rows", "guided"), [(8, 4), (9, 0), (13, 5), (32, 16), (21, 1)])
def test_shares_are_even_and_have_every_row_once(rows: int, guided: int) -> None:
    for count in (2, 3, 4):
        shares = list(shares_of(rows, guided, count))
        assert sorted(torch.cat([row_S for row_S, _ in shares]).tolist()) == list(range(rows))
        sizes = [len(row_S) for row_S, _ in shares]
        assert all(abs(size - rows / count) <= 2 for size in sizes), sizes


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_keep_to_their_thread_and_others_to_their_number(number: int) -> None:
    torch.set_num_threads(number)
    seen: list[int] = []

    def unet(x_RCHW: Tensor, *_: object) -> Tensor:
        seen.append(torch.get_num_threads())
        return x_RCHW

    run = split_among_threads(unet, 2)
    run(*batch(8, 0))
    assert seen == [1, 1]
    assert torch.get_num_threads() == number
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen.pop() == number
    torch.set_num_threads(number + 1)
    run(*batch(8, 0))
    assert seen == [1] * 4, "whatever others ask for"


def test_what_fails_in_a_thread_fails_the_batch_and_the_next_one_runs() -> None:
    failing = [True]

    def unet(x_RCHW: Tensor, *_: object) -> Tensor:
        if failing:
            raise RuntimeError("out of memory")
        return x_RCHW

    run = split_among_threads(unet, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(*batch(8, 4))
    failing.clear()
    assert len(run(*batch(8, 4))) == 8


def test_one_thread_has_nothing_to_split() -> None:
    def unet(x_RCHW: Tensor, *_: object) -> Tensor:
        return x_RCHW

    assert split_among_threads(unet, 1) is unet
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(split_among_threads(unet, 2), *batch(9, 2)).result()) == 9
