"""Which replicas Serve may choose from; `e2e/test_full_replicas.py` has it with replicas that are full."""

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.request_router.common import PendingRequest, RequestRoutingContext
from ray.serve.request_router import RequestRouter

from cp_serve.app import application
from cp_serve.requests import DrawRequest, Route
from cp_serve.routing import OnwardRouter
from services.settings import Settings
from tests.cp_serve.test_replicas import REQUEST


@dataclass(frozen=True)
class Id:
    unique_id: str


THREE = [SimpleNamespace(replica_id=Id(name)) for name in "abc"]


@dataclass
class Pending:
    """What Serve says of a call."""

    args: list[Any]
    routing_context: RequestRoutingContext = field(default_factory=RequestRoutingContext)


def chosen(request: DrawRequest | None) -> set[str]:
    """Ids of the replicas that are chosen from, over many calls."""
    found: set[str] = set()
    for _ in range(100):
        pending = Pending([request] if request else [])
        ((*replicas,),) = asyncio.run(OnwardRouter.choose_replicas(SimpleNamespace(), THREE, pending))
        assert pending.routing_context.should_backoff, "else Serve would try at once, for ever"
        assert 1 <= len(replicas) <= 2
        found |= {replica.replica_id.unique_id for replica in replicas}
    return found


@pytest.mark.parametrize(
    ("asked", "wanted"), [(set(), {"a", "b", "c"}), ({"a"}, {"b", "c"}), ({"a", "c", "gone"}, {"b"})]
)
def test_a_request_goes_on_to_where_it_was_not(asked: set[str], wanted: set[str]) -> None:
    assert chosen(replace(REQUEST, route=Route(asked))) == wanted


def test_what_was_everywhere_or_is_no_request_goes_anywhere() -> None:
    assert chosen(replace(REQUEST, route=Route({"a", "b", "c"}))) == {"a", "b", "c"}
    assert chosen(None) == {"a", "b", "c"}


def test_where_a_request_was_sent_is_known_to_whoever_sent_it() -> None:
    request = replace(REQUEST, route=Route())
    router = SimpleNamespace(curr_replicas={replica.replica_id: replica for replica in THREE})
    for name, others in (("a", 2), ("c", 1), ("c", 1), ("b", 0)):
        OnwardRouter.on_request_routed(router, Pending([request]), Id(name), None)
        assert name in request.route.asked
        assert request.route.others == others
    OnwardRouter.on_request_routed(router, Pending([]), Id("a"), None)


def test_serve_routes_the_denoisers_requests_like_that() -> None:
    denoiser = application(Settings())._bound_deployment.init_args[1]._bound_deployment
    router = denoiser._deployment_config.request_router_config.get_request_router_class()
    assert issubclass(router, RequestRouter)
    assert router.__name__ == OnwardRouter.__name__


def test_ray_has_what_that_stands_on() -> None:
    """A call's own request is the one that is routed, and its arguments are those that were given."""
    assert "args" in PendingRequest.__dataclass_fields__
    assert OnwardRouter._fulfill_next_pending_request is RequestRouter._fulfill_next_pending_request
