"""Canaries: their share of the requests, and when they lose it."""

import random
from math import exp, inf

import pytest

from services.canary import Canary, Outcomes, Trial, canary_of, log_evidence


@pytest.mark.parametrize("percent", [1, 10, 33.3, 50, 99])
def test_of_a_hundred_requests_in_a_row_a_canary_gets_its_share(percent: float) -> None:
    trial = Trial(Canary(2, percent), chance=random.Random(1))
    turns = [trial.next() for _ in range(1000)]
    for start in range(0, 900, 37):
        assert abs(sum(turns[start : start + 100]) - percent) <= 2


def test_a_client_whose_requests_are_bad_by_turns_hurts_both_versions_alike() -> None:
    trial, failures = Trial(Canary(2, 50), chance=random.Random(1)), [0, 0]
    for request in range(400):
        canary = trial.next()
        failures[canary] += request % 2
    assert abs(failures[0] - failures[1]) < 40


def test_what_is_no_share_is_no_canary() -> None:
    assert canary_of({"canary": 3}, {"palimpsest.canary_percent": "12.5"}) == Canary(3, 12.5)
    for aliases, tags in (
        ({}, {"palimpsest.canary_percent": "12.5"}),
        ({"canary": 3}, {}),
        *(({"canary": 3}, {"palimpsest.canary_percent": percent}) for percent in ("0", "100", "-1", "nan", "many")),
    ):
        assert canary_of(aliases, tags) is None


def ended_after(trial: Trial, *, canary: float, live: float, requests: int, seed: int) -> tuple[int, int] | None:
    """After how many requests, and answers of the canary's, a trial ends whose arms fail at these rates."""
    chance = random.Random(seed)
    for request in range(requests):
        picked = trial.next()
        trial.record(canary=picked, failed=chance.random() < (canary if picked else live))
        if trial.failed:
            return request + 1, trial.arms[1].answers
    return None


def test_the_evidence_is_that_of_the_formula() -> None:
    """Jeffreys' prior gives one failure in one answer 1/2, two of two 3/8, one of two 1/8."""
    assert exp(log_evidence(Outcomes(1, 1), Outcomes(1, 0))) == pytest.approx((3 / 4) ** 2 * 2**2)
    assert exp(log_evidence(Outcomes(2, 2), Outcomes(2, 1))) == pytest.approx(11 / 16 * 1 / 16 * 4**4 / 3**3)
    assert log_evidence(Outcomes(5, 1), Outcomes(5, 1)) == -inf
    assert log_evidence(Outcomes(5, 0), Outcomes(5, 5)) == -inf
    assert log_evidence(Outcomes(2, 2), Outcomes()) == -inf


def test_of_ever_so_many_answers_the_evidence_can_be_had() -> None:
    assert log_evidence(Outcomes(10**7, 10**6), Outcomes(10**7, 10**6 - 1)) < 0
    assert log_evidence(Outcomes(10**7, 2 * 10**6), Outcomes(10**7, 10**6)) > 1000


def test_one_good_answer_of_live_ends_a_canary_that_has_only_failed() -> None:
    """A canary of 99 percent leaves it no more."""
    trial = Trial(Canary(2, 99))
    for _ in range(99):
        trial.record(canary=True, failed=True)
        assert not trial.failed, "live might be no better"
    trial.record(canary=False, failed=False)
    assert trial.failed


def test_a_canary_that_fails_is_ended_soon() -> None:
    trial = Trial(Canary(2, 25))
    for request in range(20):
        trial.record(canary=trial.next(), failed=False)
        assert not trial.failed, request
    requests = 0
    while not trial.failed:
        canary = trial.next()
        trial.record(canary=canary, failed=canary)
        requests += 1
    assert requests <= 20


@pytest.mark.parametrize(("percent", "answers"), [(1, 5), (10, 5), (50, 5), (90, 25), (99, 100)])
def test_a_canary_that_always_fails_is_ended_after_few_of_its_answers(percent: float, answers: int) -> None:
    """Where live gets few requests, there is little to compare it with."""
    for seed in range(20):
        trial = Trial(Canary(2, percent), chance=random.Random(seed))
        ended = ended_after(trial, canary=1, live=0, requests=1000, seed=seed)
        assert ended is not None
        assert ended[1] <= answers


def test_a_canary_that_fails_much_more_often_is_ended_within_a_few_hundred_requests() -> None:
    for seed in range(20):
        trial = Trial(Canary(2, 25), chance=random.Random(seed))
        ended = ended_after(trial, canary=0.2, live=0.01, requests=600, seed=seed)
        assert ended is not None


@pytest.mark.parametrize(("percent", "rate"), [(1, 0.01), (10, 0.05), (30, 0.3), (50, 0.5), (90, 0.1)])
def test_a_canary_that_fails_as_often_as_live_stays(percent: float, rate: float) -> None:
    """Each trial is looked at 2000 times."""
    ended = 0
    for seed in range(200):
        trial = Trial(Canary(2, percent), chance=random.Random(seed))
        ended += ended_after(trial, canary=rate, live=rate, requests=2000, seed=1000 + seed) is not None
    assert ended <= 1


def test_another_share_continues_the_trial_and_another_version_begins_one() -> None:
    before = Trial(Canary(2, 10))
    before.record(canary=True, failed=True)
    assert Trial.continued(before, Canary(2, 50)).arms[1].failures == 1
    assert Trial.continued(before, Canary(3, 50)).arms[1].failures == 0
    assert Trial.continued(None, Canary(3, 50)).requests == 0


def test_looking_again_changes_nobodys_turn() -> None:
    trial, taken = Trial(Canary(2, 50)), 0
    for _ in range(100):
        taken += trial.next()
        trial = Trial.continued(trial, Canary(2, 50))
    assert taken == 50
