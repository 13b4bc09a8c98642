"""Canaries: their share of the requests, and when they lose it."""

import random

import pytest

from services.canary import Canary, Outcomes, Trial, canary_of, worse


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


def test_fishers_p_is_exact() -> None:
    assert worse(Outcomes(3, 3), Outcomes(10, 0)) == pytest.approx(1 / 286)
    assert worse(Outcomes(8, 1), Outcomes(8, 1)) == pytest.approx(1 - (8 * 7) / (16 * 15))
    assert worse(Outcomes(5, 0), Outcomes(5, 5)) == pytest.approx(1)
    assert worse(Outcomes(), Outcomes()) == 1


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


def test_what_is_wrong_with_requests_ends_nothing() -> None:
    ended = 0
    for seed in range(20):
        pick, trial = random.Random(seed), Trial(Canary(2, 30))
        for _ in range(300):
            trial.record(canary=trial.next(), failed=pick.random() < 0.3)
            ended += trial.failed
            if trial.failed:
                break
    assert ended <= 4, "the test is looked at again and again; chance alone ends few"


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
