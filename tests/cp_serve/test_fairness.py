"""Who draws next, and when a request would be done."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from cp_serve.fairness import Pace, choose, finish_times


@dataclass(frozen=True)
class Asked:
    person: str
    remaining: int = 10
    rows: int = 2


def people(claims: list[Asked]) -> Counter[str]:
    return Counter(claim.person for claim in claims)


def test_whoever_is_alone_has_all_places() -> None:
    assert len(choose([Asked("ann")] * 20, 16)) == 16


def test_a_newcomer_is_let_in_at_once() -> None:
    claims = [Asked("ann", 100)] * 16 + [Asked("bob")]
    assert people(choose(claims, 16)) == {"ann": 15, "bob": 1}


@pytest.mark.parametrize("seed", range(50))
def test_places_are_shared_max_min(seed: int) -> None:
    pick = random.Random(seed)
    claims = [Asked(pick.choice("abcdef")) for _ in range(pick.randint(1, 40))]
    capacity = pick.randint(1, 16)
    wanted, given = people(claims), people(choose(claims, capacity))
    assert sum(given.values()) == min(capacity, len(claims)), "no place is left empty while somebody waits"
    least = min((given[name] for name in wanted if given[name] < wanted[name]), default=capacity)
    assert max(given.values()) <= least + 1, "nobody has two more than somebody who wants more"


def test_among_equals_the_first_to_come_is_first() -> None:
    claims = [Asked(name) for name in "abcdefgh"]
    assert choose(claims, 3) == claims[:3]


def test_eight_long_drawings_do_not_starve_a_short_one() -> None:
    """Each of 30 people asks for one picture of 20 steps, after somebody asked for 8 of 100 steps."""
    pace = Pace()
    pace.measure(1, 0.01)
    claims = [Asked("big", 100)] * 8 + [Asked(f"p{number}", 20) for number in range(30)]
    times = finish_times(claims, 4, pace)
    alone = finish_times(claims[8:], 4, pace)
    assert max(times[8:]) <= 1.5 * max(alone)
    assert max(times[:8]) > max(times[8:])


def test_the_pace_is_a_line_over_rows() -> None:
    pace = Pace()
    assert pace.seconds(8) == 0
    pace.measure(4, 0.08)
    assert pace.seconds(8) == pytest.approx(0.16), "one size seen: proportional"
    for rows in (2, 8, 16, 4, 32):
        pace.measure(rows, 0.03 + 0.01 * rows)
    for _ in range(200):
        pace.measure(2, 0.05)
        pace.measure(32, 0.35)
    assert pace.seconds(16) == pytest.approx(0.19, rel=0.05)


def test_finish_times_are_those_of_the_simulated_batch() -> None:
    pace = Pace()
    pace.measure(1, 1.0)  # a second a row
    assert finish_times([Asked("a", 3, 1), Asked("b", 5, 2)], 2, pace) == [9.0, 13.0]
    assert finish_times([Asked("a", 3, 1), Asked("b", 5, 2)], 1, pace) == [3.0, 13.0]
    assert finish_times([], 4, pace) == []
