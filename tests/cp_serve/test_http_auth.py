"""The HTTP API with `PALIMPSEST_AUTH=tokens`: who is let in, and that nobody reaches another person's lineage."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from cp_serve.guard import permit
from cp_serve.http import House, build_app
from cp_serve.routes import access
from services.auth import People
from services.jobs import JobInfo
from services.objects import open_store
from tests.cp_serve.conftest import Serving
from tests.cp_serve.drawings import PATIENCE, Gate
from tests.cp_serve.test_http import PATH, refused
from tests.cp_serve.versions import publish
from tests.house import wait_until

SAMPLE = next((Path(__file__).parents[2] / "infra" / "samples" / "robot").glob("*.png"))
WATCH = "watch-0123456789-0123456789"


@dataclass(frozen=True, eq=False)
class Guarded:
    """The application behind its guard; `mine` is a lineage of ada's, of which bob may draw, and cy knows nothing."""

    serving: Serving
    client: TestClient
    people: People
    mine: str
    tokens: dict[str, str]

    def ask(self, who: str, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who else {}
        headers |= options.pop("headers", {})
        return self.client.request(method, path, headers=headers, **options)

    def draw(self, who: str, model: str = "", **fields: object) -> Any:
        body = {"model": model or self.mine, "prompt": "a <fox>", "steps": 1, "seed": 1} | fields
        return self.ask(who, "POST", PATH, json=body)

    def learn(self, who: str, lineage: str, **options: Any) -> Any:
        files = [("images", (SAMPLE.name, SAMPLE.read_bytes()))]
        fields = {"name": "mug", "noun": "mug"}
        return self.ask(who, "POST", f"/v1/lineages/{lineage}/concepts", data=fields, files=files, **options)


@pytest.fixture(scope="module")
def guarded(serving: Serving) -> Iterator[Guarded]:
    changes = {"auth": "tokens", "watch_token": WATCH, "quota_pictures": 40, "quota_concepts": 3, "quota_lineages": 2}
    settings = serving.settings.model_copy(update=changes)
    store = open_store(settings)
    people, mine = People(store), f"l{uuid4().hex[:8]}"
    names = {name: f"{name}-{uuid4().hex[:8]}" for name in ("ada", "bob", "cy", "dee")}
    tokens = {name: people.invite(unique, admin=name == "dee") for name, unique in names.items()} | {"watcher": WATCH}
    for adapter in serving.adapters.values():
        publish(serving.registry, mine, serving.denoiser.base, adapter)
    people.grant(names["ada"], mine, "owner")
    people.grant(names["bob"], mine, "generate")
    serving.await_live(mine, 2)
    app = build_app(House(settings, serving.registry, serving.handle, store))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Guarded(serving, client, people, mine, tokens)


def example(path: str) -> str:
    """A path with something in each of its places."""
    return re.sub(r"\{[^}]*\}", "x", path)


def test_nothing_of_anybodys_is_open(guarded: Guarded) -> None:
    document = guarded.client.get("/openapi.json").json()
    routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
    answers = {(method, path): guarded.ask("", method.upper(), example(path)).status_code for method, path in routes}
    let_in = {route for route, status in answers.items() if status != 401}
    assert let_in == {
        ("get", "/"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/v1/pictures/{name}"),
    }, "links to pictures are signed, and the webhook's 401 is its own"
    assert all(
        operation["security"] == [{"HTTPBearer": []}] for m in document["paths"].values() for operation in m.values()
    )


def test_calls_of_a_store_that_hangs_keep_nobody_out(guarded: Guarded) -> None:
    done = threading.Event()
    try:
        for _ in range(64):
            access._STORE.submit(done.wait, PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(guarded.ask, "dee", "GET", f"/v1/lineages/{guarded.mine}")
            wait([asked], timeout=30)
            let_in = asked.done()
            done.set()
            assert (let_in, asked.result().status_code) == (True, 200)
    finally:
        done.set()


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer palimpsest_ada_x", "Bearer \x00"])
def test_a_request_without_a_valid_token_is_challenged(guarded: Guarded, header: str) -> None:
    response = guarded.client.get("/v1/models", headers={"Authorization": header} if header else {})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "unauthorized"


def test_the_body_of_a_stranger_is_not_read(guarded: Guarded) -> None:
    def body() -> Iterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    assert guarded.ask("", "GET", "/v1/models", content=b"x" * 10_000_000).status_code == 401


def test_roles(guarded: Guarded) -> None:
    mine = guarded.mine
    statuses = {
        who: [
            guarded.draw(who).status_code,
            guarded.draw(who, f"{mine}@1").status_code,
            guarded.ask(who, "GET", f"/v1/models/{mine}").status_code,
            guarded.ask(who, "GET", f"/v1/lineages/{mine}").status_code,
            guarded.ask(who, "POST", f"/v1/lineages/{mine}/classify", files={"image": b"x"}).status_code,
            guarded.ask(who, "PUT", f"/v1/lineages/{mine}/live", json={"version": 99}).status_code,
            guarded.learn(who, mine).status_code,
        ]
        for who in ("ada", "bob", "cy", "dee")
    }
    assert statuses == {
        "ada": [200, 200, 200, 200, 415, 404, 503],
        "bob": [200, 200, 200, 200, 415, 403, 403],
        "cy": [404, 404, 404, 404, 404, 404, 403],
        "dee": [200, 200, 200, 200, 415, 404, 503],
    }


def test_anothers_lineage_answers_as_one_that_is_not_there(guarded: Guarded) -> None:
    for ask in (
        lambda lineage: guarded.draw("cy", lineage),
        lambda lineage: guarded.ask("cy", "GET", f"/v1/models/{lineage}"),
        lambda lineage: guarded.ask("cy", "GET", f"/v1/lineages/{lineage}"),
        lambda lineage: guarded.ask("cy", "PUT", f"/v1/lineages/{lineage}/live", json={"version": 1}),
    ):
        theirs, nobodys = (ask(lineage).json()["error"] for lineage in (guarded.mine, "no-such-thing"))
        assert theirs == {**nobodys, "message": nobodys["message"].replace("no-such-thing", guarded.mine)}


def test_lists_have_what_one_may_draw_with(guarded: Guarded) -> None:
    def listed(who: str) -> set[str]:
        return {model["id"].partition("@")[0] for model in guarded.ask(who, "GET", "/v1/models").json()["data"]}

    assert listed("ada") == listed("bob") == {"base", guarded.mine}
    assert listed("cy") == {"base"}
    assert {"base", "pets", guarded.mine} <= listed("dee")
    assert guarded.draw("cy", "base", prompt="a fox").status_code == 200


def test_figures_are_for_those_who_watch(guarded: Guarded) -> None:
    assert {who: guarded.ask(who, "GET", "/metrics").status_code for who in ("ada", "dee", "watcher")} == {
        "ada": 403,
        "dee": 200,
        "watcher": 200,
    }
    assert guarded.ask("", "GET", "/readyz").json() == {"status": "ready"}
    assert guarded.ask("ada", "GET", "/readyz").json() == {"status": "ready"}
    assert guarded.mine in guarded.ask("watcher", "GET", "/readyz").json()["versions"]
    assert guarded.draw("watcher").status_code == 404
    assert guarded.learn("watcher", "new-one").status_code == 403


def test_who_moved_what_is_the_tokens_owner(guarded: Guarded) -> None:
    path = f"/v1/lineages/{guarded.mine}/live"
    for body in (
        {"version": 1, "reason": "softer"},
        {"version": 2, "canary_percent": 5, "reason": "a try"},
        {"version": 2},
    ):
        assert guarded.ask("ada", "PUT", path, json=body).status_code == 200
    told = [
        (e.alias, e.after, e.actor.partition("-")[0], e.reason) for e in guarded.serving.registry.history(guarded.mine)
    ]
    assert told[-4:] == [
        ("live", 1, "ada", "softer"),
        ("canary", 2, "ada", "a try"),
        ("live", 2, "ada", ""),
        ("canary", None, "ada", ""),
    ]


def test_a_new_lineage_is_its_first_submitters(guarded: Guarded) -> None:
    names = [f"n{uuid4().hex[:8]}" for _ in range(3)]
    assert guarded.learn("cy", names[0]).status_code == 503, "Ray is not there, but the lineage is begun"
    refused(guarded.learn("bob", names[0]), 403, "forbidden", "lineage", "belongs to somebody else")
    assert guarded.ask("cy", "GET", f"/v1/lineages/{names[0]}").status_code == 404, "there is no version yet"
    assert guarded.learn("cy", names[1]).status_code == 503
    refused(guarded.learn("cy", names[2]), 403, "forbidden", None, "You own 2 lineages, at most 2")


def test_anothers_job_is_not_there(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = JobInfo("job-1", "running", ("--lineage", guarded.mine, "--concept", "mug"), None, None)
    monkeypatch.setattr("cp_serve.routes.jobs.job_info", lambda *_: theirs)
    for method, path in (("GET", "/v1/jobs/job-1"), ("DELETE", "/v1/jobs/job-1"), ("GET", "/v1/jobs/job-1/events")):
        refused(guarded.ask("cy", method, path), 404, "not_found", "job_id", "There is no such job.")
        refused(guarded.ask("bob", method, path), 404, "not_found", "job_id", "There is no such job.")
        assert guarded.ask("ada", method, path).status_code == 503, "Ray is not there"


def test_one_persons_key_is_not_anothers(guarded: Guarded) -> None:
    body = {"model": guarded.mine, "prompt": "a <fox>", "steps": 1}
    answers = [
        guarded.ask(who, "POST", PATH, json=body, headers={"Idempotency-Key": "same"}) for who in ("ada", "ada", "bob")
    ]
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true", None]
    assert answers[0].json() == answers[1].json() != answers[2].json()


def test_a_share_is_used_up(guarded: Guarded) -> None:
    statuses = [guarded.draw("cy", "base", prompt="a fox", n=8).status_code for _ in range(6)]
    assert statuses[-1] == 429
    answer = guarded.draw("cy", "base", prompt="a fox", n=8)
    refused(answer, 429, "rate_limit_exceeded", None, "Your share is 40 pictures in 1 h")
    assert int(answer.headers["Retry-After"]) > 60
    assert guarded.draw("dee", "base", prompt="a fox").status_code == 200


def test_nobodys_pictures_to_be_classified_hold_up_everybody_elses(guarded: Guarded) -> None:
    line, (name, path) = guarded.serving.denoiser._classifying, (SAMPLE.name, f"/v1/lineages/{guarded.mine}/classify")

    def classify(who: str) -> Any:
        return guarded.ask(who, "POST", path, data={"trials": "1"}, files={"image": (name, SAMPLE.read_bytes())})

    with Gate(guarded.serving.denoiser.base) as gate, ThreadPoolExecutor(5) as pool:
        waiting = []
        for held in range(1, 5):
            waiting.append(pool.submit(classify, "ada"))
            wait_until(lambda held=held: line._held.total() == held)  # type: ignore[misc]
        answer = classify("ada")
        waiting.append(pool.submit(classify, "bob"))
        wait_until(lambda: line._held.total() == 5)
        gate.open()
        assert [one.result().status_code for one in waiting] == [200] * 5
    refused(answer, 429, "rate_limit_exceeded", None, "4 requests of yours")
    assert int(answer.headers["Retry-After"]) >= 1


def test_every_route_of_a_lineage_asks() -> None:
    """A route with a lineage in its path that forgot to ask would answer everybody."""
    import ast
    import inspect

    from cp_serve.routes import classify, concepts, lineages

    for module in (classify, concepts, lineages):
        tree = ast.parse(inspect.getsource(module))
        routes = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef) and node.decorator_list]
        assert routes
        for route in routes:
            assert permit.__name__ in ast.unparse(route), f"{module.__name__}.{route.name}"
