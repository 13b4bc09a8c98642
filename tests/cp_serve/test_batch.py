"""The stacked batch: whoever comes and goes, every row stays its owner's, whatever numbers of rows are run."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cp_serve.batch import Batch, Drawing, Unet
from cp_serve.samplers import SAMPLERS
from cp_serve.unet import buckets_of, plain_unet
from services.base_model import BaseModel
from tests.cp_serve.drawings import Wish

CAPACITY = 5


def telling(rows_seen: list[int] | None = None) -> Unet:
    """Instead of a U-Net: a function of each row's own latent, timestep, and keys and values, and of nothing else."""

    def run(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, twins: int) -> Tensor:
        for rows in (x_RCHW, t_R):
            assert torch.equal(rows[:twins], rows[twins : 2 * twins].flip(0))
        if rows_seen is not None:
            rows_seen.append(len(x_RCHW))
        own = kv_RLK.mean((1, 2)) + t_R / 1000
        return (x_RCHW + own.view(-1, 1, 1, 1)).sin()

    return run


def some_drawings(base: BaseModel, count: int, pick: random.Random) -> list[Drawing]:
    drawings = []
    for seed in range(count):
        wish = Wish(
            seed=seed, steps=pick.randint(2, 9), guidance=pick.choice([1.0, 7.0]), sampler=pick.choice(SAMPLERS)
        )
        drawing = wish.drawing(base)
        drawing.kv_RLK = torch.randn(drawing.kv_RLK.shape, generator=torch.Generator().manual_seed(seed))
        drawings.append(drawing)
    return drawings


def run_out(batch: Batch, drawing: Drawing) -> Tensor:
    batch.join(drawing)
    while drawing.remaining:
        batch.step()
    batch.leave(drawing)
    return drawing.latent_CHW


def mixed(batch: Batch, drawings: Sequence[Drawing], pick: random.Random) -> dict[int, Tensor]:
    """Latents at the end of drawings that join, are parked and come back at random."""
    outside = dict(enumerate(drawings))
    inside: dict[int, Drawing] = {}
    ends = {}
    while outside or inside:
        for number in [n for n in outside if len(inside) < CAPACITY and pick.random() < 0.6]:
            if len(inside) < CAPACITY:
                inside[number] = outside.pop(number)
                batch.join(inside[number])
        if inside:
            batch.step()
        for number in list(inside):
            if not inside[number].remaining or pick.random() < 0.2:
                drawing = inside.pop(number)
                batch.leave(drawing)
                if drawing.remaining:
                    outside[number] = drawing
                else:
                    ends[number] = drawing.latent_CHW
    assert not batch.drawings
    assert batch.rows == 0
    return ends


@torch.inference_mode()
@pytest.mark.parametrize("buckets", [(), (1, 2, 4, 10), (3, 10)])
@pytest.mark.parametrize("seed", range(12))
def test_any_coming_and_going_leaves_every_row_its_owners(
    tiny_base: BaseModel, seed: int, buckets: tuple[int, ...]
) -> None:
    drawings = some_drawings(tiny_base, 9, random.Random(seed))
    expected = [
        run_out(Batch(tiny_base, telling(), CAPACITY), d) for d in some_drawings(tiny_base, 9, random.Random(seed))
    ]
    ends = mixed(Batch(tiny_base, telling(), CAPACITY, buckets=buckets), drawings, random.Random(seed))
    for number, latent in ends.items():
        torch.testing.assert_close(latent, expected[number], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_compiled_code_sees_few_numbers_of_rows(tiny_base: BaseModel) -> None:
    seen: list[int] = []
    buckets = buckets_of(CAPACITY, "reduce-overhead")
    mixed(
        Batch(tiny_base, telling(seen), CAPACITY, buckets=buckets),
        some_drawings(tiny_base, 9, random.Random(0)),
        random.Random(0),
    )
    assert set(seen) <= set(buckets)


@pytest.mark.parametrize("capacity", [1, 2, 5, 16])
def test_buckets_cover_every_batch_and_waste_little(capacity: int) -> None:
    assert buckets_of(capacity, "none") == ()
    buckets = buckets_of(capacity, "default")
    assert buckets[-1] == 2 * capacity
    for rows in range(1, 2 * capacity + 1):
        run = next(bucket for bucket in buckets if bucket >= rows)
        assert run <= 1.5 * rows + 1


def test_a_drawing_of_another_base_changes_nothing(tiny_base: BaseModel) -> None:
    batch = Batch(tiny_base, plain_unet(tiny_base), CAPACITY)
    wrong = Wish().drawing(tiny_base)
    wrong.kv_RLK = wrong.kv_RLK[:, :-1]
    with pytest.raises(ValueError, match="another base"):
        batch.join(wrong)
    assert not batch.drawings
