"""The canaries that a replica follows."""

from cp_serve.rollout import Rollout
from services.canary import Canary


def test_only_a_lineage_with_a_canary_has_one() -> None:
    rollout = Rollout()
    assert rollout.pick("pets") is None
    rollout.follow({"pets": Canary(2, 50)})
    picks = [rollout.pick("pets") for _ in range(4)]
    assert [set(picks[:2]), set(picks[2:])] == [{None, 2}] * 2, "one of every two"
    assert rollout.pick("other") is None
    rollout.follow({})
    assert rollout.pick("pets") is None


def test_one_that_failed_stays_ended_until_the_registry_has_no_more_of_it() -> None:
    rollout, canary = Rollout(), {"pets": Canary(2, 50)}
    rollout.follow(canary)
    assert all(rollout.record("pets", canary=False, failed=False) is None for _ in range(30))
    ended = [rollout.record("pets", canary=True, failed=True) for _ in range(5)]
    assert ended.count(2) == 1, "it is said once"
    rollout.follow(canary)
    assert [rollout.pick("pets") for _ in range(4)] == [None] * 4
    rollout.follow({})
    rollout.follow(canary)
    assert 2 in [rollout.pick("pets") for _ in range(4)], "somebody set it anew"
