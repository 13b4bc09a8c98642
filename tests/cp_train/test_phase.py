"""Rates and shares."""

from itertools import pairwise

import pytest
import torch

from cp_train.phase import Rate, Shard, step_generator


def test_the_rate_rises_line_by_line_and_falls_along_half_a_cosine() -> None:
    rate = Rate(2.0, warmup=4, steps=12)
    found = [rate(step) for step in range(12)]
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert found[8] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(found[4:]))
    assert 0 < found[11] < 0.1
    assert Rate(1.0, warmup=0, steps=1)(0) == 1.0


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_mean_of_the_workers_shares_is_the_mean_of_the_batch(world: int) -> None:
    losses = torch.rand(5, generator=torch.Generator().manual_seed(0))
    shards = [Shard(rank, world) for rank in range(world)]
    shares = torch.stack([shard.share(losses[shard.rows], 5) for shard in shards])
    torch.testing.assert_close(shares.mean(), losses.mean())


def test_steps_and_seeds_draw_differently_and_repeatably() -> None:
    draws = {
        (seed, step): torch.rand(1, generator=step_generator(seed, step)).item() for seed in (0, 1) for step in (0, 1)
    }
    assert len(set(draws.values())) == 4
    assert torch.rand(1, generator=step_generator(1, 1)).item() == draws[1, 1]
