"""How long, and for whom, one replica's refusal stands for all."""

from dataclasses import replace

import numpy as np
import pytest

from cp_serve.overload import Overload
from cp_serve.requests import ClassifyRequest
from services.errors import BusyError, QuotaError
from tests.cp_serve.test_replicas import REQUEST

FULL, YOURS = BusyError("full", retry_after=1), QuotaError("yours", retry_after=1)
FOUR = replace(REQUEST, seeds=(1, 2, 3, 4), person="ann")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def overload(clock: Clock) -> Overload:
    return Overload(clock=clock)


def test_for_as_many_images_or_more_it_does_for_a_moment(overload: Overload, clock: Clock) -> None:
    assert not overload.stands_for_all(FOUR, FULL)
    overload.note(FOUR, [FULL, FULL])
    for person in ("ann", "bob"):
        assert overload.stands_for_all(replace(FOUR, person=person), FULL)
        assert overload.stands_for_all(replace(FOUR, person=person, seeds=tuple(range(8))), FULL)
        assert not overload.stands_for_all(replace(FOUR, person=person, seeds=(1,)), FULL), "there may be room for one"
    clock.now += 1
    assert not overload.stands_for_all(FOUR, FULL)


def test_many_large_requests_do_not_keep_a_small_one_from_being_taken_on(overload: Overload, clock: Clock) -> None:
    one = replace(FOUR, seeds=(1,))
    overload.note(one, [FULL])
    for _ in range(10):
        clock.now += 0.02
        overload.note(FOUR, [FULL])
    assert overload.stands_for_all(FOUR, FULL)
    assert not overload.stands_for_all(one, FULL)


def test_a_persons_share_is_that_persons(overload: Overload) -> None:
    overload.note(FOUR, [FULL, YOURS])
    assert overload.stands_for_all(FOUR, YOURS)
    assert overload.stands_for_all(FOUR, FULL)
    for refusal in (FULL, YOURS):
        assert not overload.stands_for_all(replace(FOUR, person="bob"), refusal)


def test_a_queue_that_is_full_says_nothing_of_shares(overload: Overload) -> None:
    overload.note(FOUR, [FULL, FULL])
    assert not overload.stands_for_all(replace(FOUR, person="bob"), YOURS)


def test_classification_has_a_line_of_its_own(overload: Overload) -> None:
    overload.note(replace(FOUR, seeds=(1,)), [FULL])
    picture = np.zeros((1, 1, 3), np.uint8)
    assert not overload.stands_for_all(ClassifyRequest(lineage="pets", version="live", picture=picture), FULL)
