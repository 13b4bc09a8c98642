"""Who moved which alias: through us, in MLflow itself, at once; and taking it back."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import requests

from services.audit import UNKNOWN, AuditLog, Entry
from services.canary import CANARY, Canary, canary_of
from services.errors import ConflictError, NotFoundError, RefusedError
from services.lineage import CANDIDATE, LIVE, Registry, Verdict, VersionInfo
from services.moves import FOUND
from services.objects import ObjectStore
from services.settings import Settings
from tests.lineages import Mlflow, begin, fine, make, publish


def live_moves(registry: Registry, lineage: str) -> list[tuple[int | None, int | None, str]]:
    moves = [entry for entry in registry.history(lineage) if entry.action == "move" and entry.alias == LIVE]
    return [(move.before, move.after, move.via) for move in moves]


def page(client: Mlflow, lineage: str) -> str:
    """What MLflow says of a lineage."""
    return str(client.get_registered_model(lineage).description)


JOBS = [(None, 1, "job"), (1, 2, "job"), (2, 3, "job")]


def test_every_move_is_written_down_with_who_and_why(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    registry.set_live(lineage, 1, actor="ada", reason="the cup has no handle")
    assert live_moves(registry, lineage) == [*JOBS, (3, 1, "person")]
    last = registry.history(lineage)[-1]
    assert (last.actor, last.reason) == ("ada", "the cup has no handle")
    tags = mlflow_client.get_model_version(lineage, "1").tags
    assert (tags["palimpsest.promoted_by"], tags["palimpsest.promoted_because"]) == ("ada", "the cup has no handle")
    candidate = [(move.before, move.after) for move in registry.history(lineage) if move.alias == CANDIDATE]
    assert candidate == [(None, 1), (1, None), (None, 2), (2, None), (None, 3), (3, None)]


def test_a_move_to_where_it_is_is_no_move(registry: Registry, lineage: str, chain: list[VersionInfo]) -> None:
    registry.set_live(lineage, 3)
    assert live_moves(registry, lineage) == JOBS


def test_a_move_in_mlflow_itself_is_found_by_the_next_reader(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str, chain: list[VersionInfo]
) -> None:
    mlflow_client.set_registered_model_alias(lineage, LIVE, "2")
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: registry.aliases(lineage)[LIVE], range(4)))
    assert seen == [2] * 4
    found = AuditLog(stack_store).entries(lineage)[-1]
    assert (found.before, found.after, found.via, found.actor, found.reason) == (3, 2, "found", UNKNOWN, FOUND)
    assert "2  <c0> <c1>  ewc-dc  [live]" in page(mlflow_client, lineage)
    mlflow_client.delete_registered_model_alias(lineage, LIVE)
    assert registry.aliases(lineage) == {}
    assert live_moves(registry, lineage) == [*JOBS, (3, 2, "found"), (2, None, "found")]
    assert "[live]" not in page(mlflow_client, lineage)


def test_a_promotion_in_mlflow_itself_is_a_whole_one(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    fourth = publish(registry, lineage, parent=chain[-1]).number
    mlflow_client.set_registered_model_alias(lineage, LIVE, str(fourth))
    assert registry.aliases(lineage)[LIVE] == fourth
    assert CANDIDATE not in registry.aliases(lineage)
    assert registry.version(lineage, fourth).promoted
    assert mlflow_client.get_model_version(lineage, str(fourth)).tags["palimpsest.promoted_by"] == UNKNOWN
    mlflow_client.set_registered_model_alias(lineage, LIVE, "3")
    assert not registry.promote(lineage, fourth, expected=3), "somebody rolled it back"
    assert registry.aliases(lineage)[LIVE] == 3


def test_a_reader_does_not_wait_until_others_move_no_more(
    registry: Registry,
    mlflow_client: Mlflow,
    lineage: str,
    chain: list[VersionInfo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is moved while one move is written down is the next reader's."""
    honest, moves = registry._client.set_model_version_tag, 0

    def moved_meanwhile(*args: str) -> None:
        nonlocal moves
        moves += 1
        mlflow_client.set_registered_model_alias(lineage, LIVE, str(1 + moves % 2))
        honest(*args)

    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    with monkeypatch.context() as patch:
        patch.setattr(registry._client, "set_model_version_tag", moved_meanwhile)
        registry.aliases(lineage)
        assert moves == 3, "the three tags of one promotion"
    assert registry.aliases(lineage)[LIVE] == 2
    assert live_moves(registry, lineage)[-2:] == [(3, 1, "found"), (1, 2, "found")]


def test_what_went_live_in_mlflow_alone_is_not_begun_anew(
    registry: Registry, mlflow_client: Mlflow, lineage: str
) -> None:
    publish(registry, lineage)
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    assert not registry.may_begin(lineage)
    mlflow_client.delete_registered_model_alias(lineage, LIVE)
    assert not registry.may_begin(lineage), "a slip, perhaps"


def test_a_log_that_lost_its_end_is_refused(
    registry: Registry, stack_store: ObjectStore, lineage: str, chain: list[VersionInfo]
) -> None:
    *_, last = stack_store.list(f"audit/{lineage}/")
    whole = stack_store.get(last)
    stack_store.delete(last)
    with pytest.raises(RefusedError, match="has lost its end"):
        registry.history(lineage)
    stack_store.put(last, whole)
    assert registry.history(lineage)


def test_a_canarys_other_share_is_written_down(registry: Registry, lineage: str, chain: list[VersionInfo]) -> None:
    for percent in (5, 5, 10):
        registry.set_canary(lineage, 2, percent, actor="ada")
    told = [(entry.before, entry.after, entry.reason) for entry in registry.history(lineage) if entry.alias == CANARY]
    assert told == [(None, 2, ""), (2, 2, "share 5% -> 10%")]


def test_one_canarys_share_is_never_anothers(
    registry: Registry, lineage: str, chain: list[VersionInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment a replica looks at, and wherever it was broken off."""
    registry.set_canary(lineage, 1, 5)
    seen = []
    for method in ("set_registered_model_tag", "set_registered_model_alias", "delete_registered_model_alias"):
        honest = getattr(registry._client, method)

        def watched(*args: str, honest: Callable[..., None] = honest) -> None:
            honest(*args)
            model = registry._client.get_registered_model(lineage)
            seen.append(canary_of({name: int(number) for name, number in model.aliases.items()}, model.tags))

        monkeypatch.setattr(registry._client, method, watched)
    registry.set_canary(lineage, 2, 50, actor="ada", reason="sharper")
    assert set(seen) == {None, Canary(2, 50)}
    told = [(entry.before, entry.after, entry.actor) for entry in registry.history(lineage) if entry.alias == CANARY]
    assert told[1:] == [(1, None, "ada"), (None, 2, "ada")]


def test_a_candidate_has_the_name_of_who_asked(registry: Registry, lineage: str) -> None:
    info = publish(registry, lineage, verdict=Verdict(passed=False, reasons=("no",)), actor="ada")
    assert [(entry.after, entry.actor) for entry in registry.history(lineage)] == [(info.number, "ada")]


def test_a_lineage_of_before_the_log_gets_one(registry: Registry, mlflow_client: Mlflow, lineage: str) -> None:
    publish(registry, lineage)
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    assert live_moves(registry, lineage) == [(None, 1, "found")]


def test_a_move_that_was_overruled_at_once_is_found_out(
    registry: Registry,
    mlflow_client: Mlflow,
    lineage: str,
    chain: list[VersionInfo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person moves `live` in MLflow itself in the moment between a job's last look and its write."""
    theirs, newest = (publish(registry, lineage, parent=parent).number for parent in (chain[0], chain[-1]))
    carry_out, begun = registry._carry_out, datetime.now(UTC)

    def raced(name: str, entry: Entry) -> None:
        if entry.alias == LIVE:
            mlflow_client.set_registered_model_alias(lineage, LIVE, str(theirs))
        carry_out(name, entry)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_carry_out", raced)
        assert registry.promote(lineage, newest, expected=3)
    assert registry.aliases(lineage)[LIVE] == newest
    assert live_moves(registry, lineage)[-1] == (3, newest, "job"), "the history has nothing of it"

    told = [registry.look_into(lineage, LIVE, number, begun) for number in (newest, theirs, theirs)]
    assert told == [False, True, False], "said once, and not of what was written down before it was done"
    found = registry.history(lineage)[-1]
    assert (found.action, found.before, found.after, found.via) == ("overruled", theirs, newest, "found")
    assert found.reason.startswith("made in MLflow itself at ")
    assert live_moves(registry, lineage)[-1] == (3, newest, "job")
    assert registry.undo(lineage) == 3, "what is taken back is the move that stands"
    assert registry.may_begin(lineage) is False


def test_moves_that_everybody_saw_are_not_looked_into(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    now = datetime.now(UTC)
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    assert not registry.look_into(lineage, LIVE, 1, now), "it stands, and is written down by this look"
    registry.set_live(lineage, 2)
    assert not any(registry.look_into(lineage, LIVE, number, now) for number in (1, 2))
    assert not registry.look_into(lineage, "favourite", 1, now)
    assert registry.look_into(lineage, LIVE, 3, now + timedelta(hours=1)), "nobody wrote down one of that time"


def test_undo_takes_back_move_after_move(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    assert registry.undo(lineage, actor="ada") == 3
    assert registry.undo(lineage, actor="ada") == 2
    assert registry.aliases(lineage)[LIVE] == 2
    registry.set_live(lineage, 3)
    assert [registry.undo(lineage) for _ in range(2)] == [2, 1]
    with pytest.raises(NotFoundError, match=r"no move of .* to take back"):
        registry.undo(lineage)
    undone = [entry.undoes for entry in registry.history(lineage) if entry.undoes]
    assert len(undone) == len(set(undone)) == 4


def test_a_canary_is_written_down(registry: Registry, lineage: str, chain: list[VersionInfo]) -> None:
    registry.set_canary(lineage, 1, 10, actor="ada", reason="try")
    assert [registry.end_canary(lineage, number) for number in (2, None, None)] == [False, True, False]
    moves = [(move.before, move.after, move.reason) for move in registry.history(lineage) if move.alias == CANARY]
    assert moves == [(None, 1, "try"), (1, None, "")]


def test_a_move_that_was_written_down_but_not_carried_out_yet_counts(
    registry: Registry, stack_store: ObjectStore, lineage: str, chain: list[VersionInfo]
) -> None:
    """A person rolls back in the moment before a job promotes; the job must not overrule."""
    fourth = publish(registry, lineage, parent=chain[-1])
    log = AuditLog(stack_store)
    log.append(lineage, alias=LIVE, before=3, to=1, actor="ada", reason="", via="person")
    assert not registry.promote(lineage, fourth.number, expected=3)
    assert registry.aliases(lineage)[LIVE] == 3, "a reader waits for the move to be carried out"
    assert live_moves(registry, lineage)[-1] == (3, 1, "person")


def test_a_move_that_was_never_carried_out_is_found_out(
    registry: Registry,
    stack_store: ObjectStore,
    lineage: str,
    chain: list[VersionInfo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    AuditLog(stack_store).append(lineage, alias=LIVE, before=3, to=1, actor="ada", reason="", via="person")
    monkeypatch.setattr("services.moves._SETTLING", 0.0)
    assert live_moves(registry, lineage)[-2:] == [(3, 1, "person"), (1, 3, "found")]


def test_a_move_carried_out_by_one_who_then_died_is_no_foreign_move(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str, chain: list[VersionInfo]
) -> None:
    AuditLog(stack_store).append(lineage, alias=LIVE, before=3, to=1, actor="ada", reason="", via="person")
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    assert registry.aliases(lineage)[LIVE] == 1
    assert live_moves(registry, lineage) == [*JOBS, (3, 1, "person")]


def test_the_later_of_two_at_once_wins_and_both_are_written_down(
    registry: Registry, lineage: str, chain: list[VersionInfo]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: registry.set_live(lineage, number), (1, 2, 1, 2, 1, 2)))
    moves = live_moves(registry, lineage)
    assert {via for _, _, via in moves} == {"job", "person"}
    assert registry.aliases(lineage)[LIVE] == moves[-1][1]


def test_a_log_that_cannot_be_written_stops_no_reader(
    registry: Registry, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str, chain: list[VersionInfo]
) -> None:
    key = f"audit/{lineage}/{len(registry.history(lineage)):012d}.json"
    whole = stack_store.get(key)
    stack_store.put(key, b"damaged")
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    assert registry.aliases(lineage)[LIVE] == 1
    with pytest.raises(RefusedError, match="audit log"):
        registry.history(lineage)
    with pytest.raises(RefusedError, match="audit log"):
        registry.set_live(lineage, 2)
    stack_store.put(key, whole)
    registry.record_found(lineage)
    assert registry.targets()[lineage].unrecorded, "it is not tried again at once"
    assert live_moves(registry, lineage)[-1] == (3, 1, "found")
    assert not registry.targets()[lineage].unrecorded


def test_a_lineage_that_was_cleared_may_begin_anew(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo]
) -> None:
    assert not registry.may_begin(lineage)
    mlflow_client.delete_registered_model_alias(lineage, LIVE)
    assert not registry.may_begin(lineage), "a slip in MLflow is not a decision"
    registry.set_live(lineage, 3)
    registry.clear_live(lineage, reason="anew")
    assert registry.may_begin(lineage)
    fresh = publish(registry, lineage)
    assert registry.promote(lineage, fresh.number, expected=None)
    assert (fresh.parent, registry.aliases(lineage)[LIVE]) == (None, 4)


def test_a_version_marked_as_deleted_meanwhile_does_not_stay_live(
    registry: Registry, mlflow_client: Mlflow, lineage: str, chain: list[VersionInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = registry._move

    def marked_meanwhile(*args: object, **kwargs: object) -> bool:
        mlflow_client.set_model_version_tag(lineage, "1", "palimpsest.deleted", "now")
        return move(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "_move", marked_meanwhile)
    with pytest.raises(ConflictError, match="is being deleted"):
        registry.set_live(lineage, 1)
    assert registry.aliases(lineage)[LIVE] == 3


def test_pages_in_mlflow_tell_the_lineage(registry: Registry, mlflow_client: Mlflow, chain: list[VersionInfo]) -> None:
    lineage = chain[0].lineage
    assert "3  <c0> <c1> <c2>  ewc-dc  [live]" in page(mlflow_client, lineage)
    registry.set_canary(lineage, 1, 10)
    assert "1  <c0>  ewc-dc  [canary]" in page(mlflow_client, lineage)
    registry.end_canary(lineage)
    registry.clear_live(lineage)
    assert "[" not in page(mlflow_client, lineage)
    third = mlflow_client.get_model_version(lineage, "3").description
    assert f"[version 2](#/models/{lineage}/versions/2)" in third
    assert chain[2].digest in third
    assert chain[2].run_id in third


def test_the_picture_on_a_versions_page_is_its_own(
    registry: Registry, stack_settings: Settings, mlflow_client: Mlflow, lineage: str
) -> None:
    run_id = begin(registry, lineage)
    manifest, files = make(lineage, run_id)
    registry.put_artifact(run_id, "samples/concepts.png", b"\x89PNG picture")
    verdict = Verdict(passed=False, reasons=("<c0> draws | nothing",))
    registry.publish(
        *(lineage, run_id, manifest, files),
        submission="s",
        verdict=verdict,
        job="",
        check=fine,
        pictures="samples/concepts.png",
    )
    described = mlflow_client.get_model_version(lineage, "1").description
    assert "failed: &#60;c0&#62; draws &#124; nothing" in described
    (source,) = re.findall(r"!\[[^]]*\]\((.*)\)", described)
    assert requests.get(f"{stack_settings.mlflow}/{source}", timeout=60).content == b"\x89PNG picture"


def test_images_that_are_gone_are_known_by_where_they_were_held(registry: Registry, lineage: str) -> None:
    run_id = begin(registry, lineage)
    manifest, files = make(lineage, run_id)
    intake = f"in-{uuid4().hex}"
    registry.publish(
        *(lineage, run_id, manifest, files),
        submission="s",
        verdict=Verdict(passed=True),
        job="",
        check=fine,
        intake=intake,
        images="sha256:0",
    )
    found = registry.find_intake(lineage, intake)
    assert found is not None
    assert (found.number, found.images, found.intake) == (1, "sha256:0", intake)
    assert registry.find_intake(lineage, f"in-{uuid4().hex}") is None


def test_a_version_tells_what_it_added(registry: Registry, chain: list[VersionInfo]) -> None:
    third = chain[2]
    assert (third.concept, third.parent_digest) == ("c2", chain[1].digest)
    assert replace(third, aliases=(LIVE,), promoted=True) == registry.version(third.lineage, 3)
