"""Everybody's share: by a clock of the test's own."""

import pytest

from services.auth import ANYBODY, Person
from services.errors import BusyError, InputError, QuotaError
from services.quotas import Buckets, Quota

ADA, BOB = Person("ada"), Person("bob")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def take(buckets: Buckets, person: Person, amount: int = 1) -> None:
    with buckets.taken(person, amount):
        pass


def test_a_share_is_used_up_and_comes_back_evenly() -> None:
    clock = Clock()
    buckets = Buckets(Quota("pictures", 6, 3600.0), clock=clock)
    take(buckets, ADA, 6)
    with pytest.raises(QuotaError, match="6 pictures in 1 h, and it is used up") as refused:
        take(buckets, ADA)
    assert refused.value.retry_after == 600
    take(buckets, BOB, 6)
    clock.now += 599
    with pytest.raises(QuotaError):
        take(buckets, ADA)
    clock.now += 1
    take(buckets, ADA)
    clock.now += 10 * 3600
    take(buckets, ADA, 6)
    with pytest.raises(QuotaError):
        take(buckets, ADA)


def test_what_can_never_be_is_no_matter_of_waiting() -> None:
    with pytest.raises(InputError, match="ask for fewer at once"):
        take(Buckets(Quota("pictures", 6, 3600.0)), ADA, 7)


def test_what_was_refused_is_given_back() -> None:
    buckets = Buckets(Quota("concepts", 1, 86400.0), clock=Clock())
    for _ in range(3):
        with pytest.raises(BusyError), buckets.taken(ADA, 1):
            raise BusyError("full")
    take(buckets, ADA)
    with pytest.raises(QuotaError):
        take(buckets, ADA)


def test_what_broke_down_in_whatever_way_is_given_back() -> None:
    buckets = Buckets(Quota("pictures", 1, 86400.0), clock=Clock())
    for _ in range(3):
        with pytest.raises(KeyError), buckets.taken(ADA, 1):
            raise KeyError


def test_administrators_and_0_have_no_limit() -> None:
    buckets, none = Buckets(Quota("pictures", 1, 60.0)), Buckets(Quota("pictures", 0, 60.0))
    for _ in range(5):
        take(buckets, ANYBODY, 8)
        take(none, ADA, 8)
