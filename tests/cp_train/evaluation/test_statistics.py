"""Intervals, against a table of Student's t."""

import math

import pytest

from cp_train.evaluation.statistics import Interval, interval, over_runs, paired, units


def test_an_interval_by_hand() -> None:
    # mean 2, s = 1, t(0.975, 2) = 4.303: half = 4.303 / sqrt 3
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.runs) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx((2 - found.half, 2 + found.half))


def test_one_run_has_no_interval_and_none_has_no_mean() -> None:
    assert interval([7.0]) == Interval(7.0, None, 1)
    assert interval([]) is None
    assert interval([math.nan]) is None


def test_what_is_no_number_is_left_out() -> None:
    assert interval([1.0, math.nan, 3.0, math.inf]) == interval([1.0, 3.0])


def test_pairing_cancels_what_runs_share() -> None:
    ours = {(order, 0): value for order, value in enumerate((10.0, 20.0, 31.0))}
    theirs = {(order, 0): value for order, value in enumerate((9.0, 19.0, 30.0, 0.0))}
    found = paired(ours, theirs)
    assert found == Interval(1.0, 0.0, 3)
    assert found.differs
    assert interval(list(ours.values())).differs is False  # type: ignore[union-attr]


def test_runs_of_one_order_count_once() -> None:
    # Three orders at 1, 2, 3; their seeds scatter around them. As nine independent runs the interval would be narrower.
    values = {(order, seed): order + 1 + (seed - 1) * 0.3 for order in range(3) for seed in range(3)}
    assert units(values) == pytest.approx([1, 2, 3])
    found, nine = over_runs(values), interval(list(values.values()))
    assert found is not None
    assert nine is not None
    assert (found.mean, found.runs) == (pytest.approx(2), 9)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3))
    assert nine.half is not None
    assert nine.half < found.half / 2


def test_of_one_order_its_seeds_are_the_runs() -> None:
    assert units({(0, 0): 1.0, (0, 1): 3.0, (0, 2): math.nan}) == [1.0, 3.0]
    assert over_runs({(0, 0): 1.0}) == Interval(1.0, None, 1)
    assert over_runs({}) is None


def test_orders_with_more_seeds_weigh_no_more() -> None:
    found = over_runs({(0, 0): 1.0, (0, 1): 1.0, (0, 2): 1.0, (1, 0): 5.0})
    assert found is not None
    assert (found.mean, found.runs) == (3.0, 4)


@pytest.mark.parametrize(("half", "differs"), [(None, False), (0.5, True), (1.5, False)])
def test_a_difference_is_one_whose_interval_leaves_out_zero(half: float | None, differs: bool) -> None:
    assert Interval(-1.0, half, 3).differs is differs
