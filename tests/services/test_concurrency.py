"""Many writers of one lineage at once, on the real registry, store and lease; only the learning itself is made up."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from services.lease import lease, take_place
from services.lineage import LIVE, Registry, Verdict
from services.objects import ObjectStore
from tests.lineages import publish

MANY = 20
FAILS = {3, 11}
PATIENCE = 1500.0


@pytest.mark.timeout(1800)
def test_20_submissions_at_once_end_as_one_chain_in_order_of_submission(
    registry: Registry, stack_store: ObjectStore, lineage: str
) -> None:
    places = [take_place(stack_store, lineage, holder=f"job-{number}") for number in range(MANY)]
    ready = threading.Barrier(MANY)

    def job(number: int) -> tuple[int, int | None, bool]:
        """What `cp_train.job` does, with a version that is made up instead of learned."""
        ready.wait()
        with lease(
            stack_store, lineage, ttl=60, holder=f"job-{number}", timeout=PATIENCE, place=places[number]
        ) as writer:
            live = registry.aliases(lineage).get(LIVE) if lineage in registry.lineages() else None
            parent = registry.version(lineage, live) if live else None
            verdict = Verdict(passed=number not in FAILS)
            submission = f"job-{number}"
            info = publish(registry, lineage, parent=parent, submission=submission, verdict=verdict, check=writer.check)
            writer.check()
            return info.number, live, verdict.passed and registry.promote(lineage, info.number, expected=live)

    with ThreadPoolExecutor(MANY) as pool:
        outcomes = list(pool.map(job, range(MANY)))
    assert [number for number, _, _ in outcomes] == list(range(1, MANY + 1))
    assert [passed for _, _, passed in outcomes] == [number not in FAILS for number in range(MANY)]
    parent = None
    for number, built_on, passed in outcomes:
        assert built_on == parent
        parent = number if passed else parent
    last = registry.version(lineage, MANY)
    assert len(last.concepts) == MANY - len(FAILS)
    assert registry.aliases(lineage)[LIVE] == MANY
    moves = [(move.before, move.after, move.via) for move in registry.history(lineage) if move.alias == LIVE]
    chain = [None, *(number for number, _, passed in outcomes if passed)]
    assert moves == [(before, after, "job") for before, after in pairwise(chain)]
    assert not list(stack_store.list(f"leases/{lineage}/queue/"))
