"""Distances between sets of features, against values worked out by hand."""

import math

import pytest
import torch

from cp_train.evaluation.distances import LEAST, kid, mmd, similarity

X = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
Y = torch.tensor([[1.0, 0.0], [1.0, 0.0]])


def test_mmd_by_hand() -> None:
    # k = (1 + x.y)^2: within X {4, 1, 1, 4}, within Y all 4, across {4, 4, 1, 1}: 2.5 + 4 - 2 * 2.5
    assert mmd(X, Y) == pytest.approx(1500)
    assert mmd(Y, X) == pytest.approx(1500)


def test_mmd_of_a_set_with_itself_is_zero() -> None:
    assert mmd(X, X) == 0


def test_of_features_that_are_no_numbers_it_is_none_not_the_best() -> None:
    assert math.isnan(mmd(X, X * math.nan))


def test_mmd_between_opposite_points() -> None:
    # 4 + 4 - 2 * 0
    assert mmd(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])) == pytest.approx(8000)


def test_similarity_is_the_mean_of_all_cosines() -> None:
    assert similarity(X, Y) == pytest.approx(0.5)
    assert similarity(torch.tensor([[0.6, 0.8]]), X) == pytest.approx(0.7)


def test_kid_leaves_out_each_picture_with_itself() -> None:
    # Half (1, 0), half (0, 1); k = (1 + x.y)^3 is 8 or 1. Within: a picture meets 49 of its kind and 50 others.
    half = X.repeat(LEAST // 2, 1)
    within = (49 * 8 + 50 * 1) / 99
    same = torch.tensor([[1.0, 0.0]]).repeat(LEAST, 1)
    assert kid(half, same) == pytest.approx(1000 * (within + 8 - 2 * 4.5))
    assert kid(half, half) == pytest.approx(1000 * (2 * within - 2 * 4.5))


def test_kid_of_few_pictures_is_none() -> None:
    many, few = X.repeat(LEAST, 1), X[:1].repeat(LEAST - 1, 1)
    assert kid(many, few) is None
    assert kid(few, many) is None
    assert not math.isnan(kid(many, many[:LEAST]) or 0.0)
