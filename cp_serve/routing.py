"""Which replica Ray Serve sends a request to: never one that it was sent to before, while there is another.

Serve's own router counts requests, and a replica refuses by images (`engine.py`): where one is full, it may well have
the fewest requests, and would be chosen again and again. So whoever asks again says where the request has been, in its
`Route`. Otherwise it is Serve's own rule, the power of two choices: of two replicas by chance the one with fewer
requests (Mitzenmacher, IEEE TPDS 2001).
"""

import random
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cp_serve.requests import ClassifyRequest, DrawRequest, Route

_CHOICES = 2


class OnwardRouter(RequestRouter):  # type: ignore[misc]
    """Takes a request onward, past the replicas of its `Route`; Serve runs it in the process that asks."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Two of those that the request was not sent to, or two of all if there are none; Serve takes the less busy."""
        route = _route_of(pending_request)
        onward = [replica for replica in candidate_replicas if replica.replica_id.unique_id not in route.asked]
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # if none has room for a request, wait a little
        there = onward or candidate_replicas
        return [random.sample(there, min(_CHOICES, len(there)))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        """Serve says that a replica has the request."""
        route = _route_of(pending_request)
        route.asked.add(replica_id.unique_id)
        route.others = sum(known.unique_id not in route.asked for known in self.curr_replicas)


def _route_of(pending: PendingRequest | None) -> Route:
    """Where a request has been; a call that brings none has been nowhere."""
    arguments = pending.args if pending is not None else []
    return next((one.route for one in arguments if isinstance(one, DrawRequest | ClassifyRequest)), Route())


def router() -> RequestRouterConfig:
    """What tells Serve to route like that."""
    return RequestRouterConfig(request_router_class=OnwardRouter)
