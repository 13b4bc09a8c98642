"""Lineages, versions and aliases on a real MLflow server, on both kinds of store."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch

from services.adapter import new_adapter
from services.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    RefusedError,
)
from services.lineage import CANDIDATE, LIVE, Registry, Verdict, VersionInfo
from services.manifest import Manifest
from tests.lineages import BASE, LAYOUT, Mlflow, begin, fetch, fine, make, numbers, publish
from tests.proxy import Proxy


def test_what_is_published_is_what_is_fetched(registry: Registry, lineage: str) -> None:
    verdict = Verdict(passed=False, reasons=("forgets c0",))
    info = publish(registry, lineage, seed=7, submission="s-1", verdict=verdict)
    manifest, adapter = fetch(registry, info)
    expected = new_adapter(LAYOUT, rank=2, seed=7)
    assert torch.equal(adapter.down_PRD, expected.down_PRD)
    assert torch.equal(adapter.tokens["c0"], torch.full((1, 8), 0.5))
    state = registry.fetch_state(lineage, info.number, layout=LAYOUT, base=BASE)
    assert torch.equal(state.down_PRD, expected.down_PRD.abs())
    assert manifest.digest == info.digest
    assert (info.number, info.parent, info.concepts) == (1, None, ("c0",))
    assert (info.gate_passed, info.gate_reasons) == (False, ("forgets c0",))
    assert (info.method, info.base_revision) == ("ewc-dc", BASE.revision)
    assert (info.aliases, info.promoted) == ((CANDIDATE,), False)
    assert info.created.utcoffset() is not None
    assert registry.find_submission(lineage, "s-1") == info
    assert registry.find_submission(lineage, "S-1") is None
    assert lineage in registry.lineages()
    assert lineage not in registry.live_versions()


def test_versions_form_a_chain_and_live_follows(registry: Registry, lineage: str) -> None:
    parent = None
    for number in (1, 2, 3):
        info = publish(registry, lineage, parent=parent)
        assert registry.promote(lineage, info.number, expected=parent.number if parent else None)
        assert registry.aliases(lineage) == {LIVE: number}
        parent = info
    versions = registry.versions(lineage)
    assert [(v.number, v.parent, len(v.concepts)) for v in versions] == [(1, None, 1), (2, 1, 2), (3, 2, 3)]
    assert [v.aliases for v in versions] == [(), (), (LIVE,)]
    assert all(v.promoted for v in versions)
    assert registry.live_versions()[lineage] == 3


def test_a_version_whose_parent_is_not_live_any_more_stays_candidate(registry: Registry, lineage: str) -> None:
    first = publish(registry, lineage)
    second = publish(registry, lineage, parent=first)
    registry.set_live(lineage, second.number)
    third = publish(registry, lineage, parent=second)
    registry.set_live(lineage, first.number)  # a roll-back while the third was trained
    assert not registry.promote(lineage, third.number, expected=second.number)
    assert registry.aliases(lineage) == {LIVE: 1, CANDIDATE: 3}
    registry.set_live(lineage, third.number)
    assert registry.aliases(lineage) == {LIVE: 3}


def test_a_repeated_promotion_does_not_undo_a_roll_back(registry: Registry, lineage: str) -> None:
    first = publish(registry, lineage)
    assert registry.promote(lineage, 1, expected=None)
    second = publish(registry, lineage, parent=first, submission="s-2")
    assert registry.promote(lineage, 2, expected=1)
    assert registry.promote(lineage, 2, expected=1), "a repeat finds it live"
    registry.set_live(lineage, 1)
    assert publish(registry, lineage, parent=first, submission="s-2").number == second.number
    assert not registry.promote(lineage, 2, expected=1)
    assert registry.aliases(lineage) == {LIVE: 1}


def test_an_older_version_does_not_take_the_candidate_alias(registry: Registry, lineage: str) -> None:
    publish(registry, lineage, submission="s-1")
    publish(registry, lineage)
    publish(registry, lineage, submission="s-1")
    assert registry.aliases(lineage) == {CANDIDATE: 2}


def test_references_resolve_or_say_what_exists(registry: Registry, lineage: str) -> None:
    publish(registry, lineage)
    registry.set_live(lineage, 1)
    publish(registry, lineage)
    assert [registry.resolve(lineage, ref) for ref in (LIVE, CANDIDATE, "1", "2")] == [1, 2, 1, 2]
    for ref in ("3", "0", "01", "-1", "²", "", "other", "1' OR '1'='1"):
        with pytest.raises(NotFoundError, match="1 to 2, live is 1, candidate is 2"):
            registry.resolve(lineage, ref)


def test_where_none_is_live_what_makes_one_live_is_said(registry: Registry, lineage: str) -> None:
    publish(registry, lineage)
    mend = f"`palimpsest promote N --lineage {lineage}` makes one live"
    with pytest.raises(NotFoundError) as refused:
        registry.resolve(lineage, LIVE)
    assert refused.value.message == f"No version of `{lineage}` is live: {mend}; there are: 1 to 1, candidate is 1."


def test_an_unknown_version_is_not_found(registry: Registry, lineage: str) -> None:
    publish(registry, lineage)
    calls: list[Callable[[int], object]] = [
        lambda number: registry.version(lineage, number),
        lambda number: registry.set_live(lineage, number),
        lambda number: registry.promote(lineage, number, expected=None),
        lambda number: registry.fetch(lineage, number, layout=LAYOUT, base=BASE),
    ]
    for call, number in product(calls, (0, -1, 9, 2**31 - 1, 2**31, 10**30)):
        with pytest.raises(NotFoundError, match="has no version"):
            call(number)
    assert registry.aliases(lineage) == {CANDIDATE: 1}


def test_an_unknown_lineage_is_not_found(registry: Registry, mlflow_client: Mlflow, lineage: str) -> None:
    for call in (registry.aliases, registry.versions):
        with pytest.raises(NotFoundError, match=lineage):
            call(lineage)
    assert registry.find_submission(lineage, "s") is None
    mlflow_client.create_registered_model(lineage)  # somebody else's
    assert lineage not in registry.lineages()
    with pytest.raises(NotFoundError, match="not a lineage of Palimpsest"):
        registry.versions(lineage)
    with pytest.raises(ConflictError, match="not a lineage of Palimpsest"):
        publish(registry, lineage)
    assert numbers(mlflow_client, lineage) == []


@pytest.mark.parametrize("name", ["", "Upper", "base", "a' OR '1'='1", "a/b", "x" * 33, "ä"])
def test_names_are_checked(registry: Registry, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: begin(registry, name),
        lambda: registry.versions(name),
        lambda: registry.version(name, 1),
        lambda: registry.find_submission(name, "s"),
        lambda: registry.promote(name, 1, expected=None),
    ]
    for call in calls:
        with pytest.raises(InputError, match="lineage"):
            call()


@pytest.mark.parametrize("key", ["", "it's", "a`b", 'a"b', "x" * 201, "a b", "a\n", "%"])
def test_submission_keys_are_checked(registry: Registry, lineage: str, key: str) -> None:
    with pytest.raises(InputError, match="submission"):
        registry.find_submission(lineage, key)


def test_two_who_create_a_lineage_at_once_both_succeed(registry: Registry, lineage: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda seed: publish(registry, lineage, seed=seed), range(4)))
    assert sorted(info.number for info in infos) == [1, 2, 3, 4]
    assert len({info.digest for info in infos}) == 4
    for info in infos:
        assert fetch(registry, info)[0].digest == info.digest


class LostLeaseError(Exception):
    """What the lease's check raises, or a kill at that moment."""


def lost() -> None:
    raise LostLeaseError


def test_nothing_is_visible_before_the_last_step(registry: Registry, mlflow_client: Mlflow, lineage: str) -> None:
    with pytest.raises(LostLeaseError):
        publish(registry, lineage, submission="s-1", check=lost)
    assert numbers(mlflow_client, lineage) == []
    assert lineage not in registry.lineages()
    assert registry.find_submission(lineage, "s-1") is None
    for _ in range(3):
        assert publish(registry, lineage, submission="s-1").number == 1
    assert numbers(mlflow_client, lineage) == [1]


def test_the_same_run_may_try_again_but_never_change_its_version(
    registry: Registry, mlflow_client: Mlflow, lineage: str
) -> None:
    run_id = begin(registry, lineage)
    manifest, files = make(lineage, run_id)

    def attempt(submission: str, check: Callable[[], None] = fine) -> VersionInfo:
        verdict = Verdict(passed=True)
        return registry.publish(
            lineage, run_id, manifest, files, submission=submission, verdict=verdict, job="j", check=check
        )

    with pytest.raises(LostLeaseError):
        attempt("s-1", lost)
    info = attempt("s-1")
    with pytest.raises(ConflictError, match="begin a new run"):
        attempt("s-2")
    assert numbers(mlflow_client, lineage) == [1]
    assert fetch(registry, info)


def test_a_registration_whose_answer_is_lost_is_found(
    far_registry: Registry, mlflow_client: Mlflow, lineage: str, mlflow_proxy: Proxy
) -> None:
    def lose() -> None:
        mlflow_proxy.lose_answers = 1

    info = publish(far_registry, lineage, check=lose)
    assert (info.number, info.aliases) == (1, (CANDIDATE,))
    assert numbers(mlflow_client, lineage) == [1]


def test_a_kill_between_registering_and_the_aliases_is_mended_by_a_repeat(
    registry: Registry, mlflow_client: Mlflow, lineage: str
) -> None:
    publish(registry, lineage, submission="s-1")
    mlflow_client.delete_registered_model_alias(lineage, CANDIDATE)
    assert publish(registry, lineage, submission="s-1").aliases == (CANDIDATE,)
    assert registry.promote(lineage, 1, expected=None)
    assert numbers(mlflow_client, lineage) == [1]


def test_files_that_are_not_the_manifests_are_not_published(
    registry: Registry, mlflow_client: Mlflow, lineage: str
) -> None:
    run_id = begin(registry, lineage)
    manifest, files = make(lineage, run_id)
    foreign, _ = make("another", run_id)
    damaged = files | {"tokens.safetensors": b"other"}
    cases: list[tuple[Manifest, Mapping[str, bytes]]] = [
        (manifest, damaged),
        (manifest, {}),
        (manifest, files | {"more": b""}),
        (foreign, files),
    ]
    for case in cases:
        with pytest.raises(RefusedError):
            registry.publish(lineage, run_id, *case, submission="s", verdict=Verdict(passed=True), job="j", check=fine)
    assert numbers(mlflow_client, lineage) == []
