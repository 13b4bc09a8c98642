"""`GET /healthz`, `/readyz` and `/metrics`."""

from contextlib import suppress

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cp_serve.guard import permit_watching, person_of
from cp_serve.metrics import merge
from cp_serve.routes.access import Responses, house
from services.errors import UnavailableError

router = APIRouter(tags=["health"])
_PATIENCE = 2.0
_METRICS: Responses = {200: {"content": {"text/plain": {}}, "description": "Prometheus' text format, or OpenMetrics'."}}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The HTTP server is alive."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, object]:
    """A denoiser is ready: every live version is loaded, or was refused and the one before it stays."""
    status = await house(request).replicas.status(patience=_PATIENCE)
    return {"status": "ready", **(status if person_of(request).watches else {})}


@router.get("/metrics", response_class=Response, responses=_METRICS)
async def metrics(request: Request) -> Response:
    """What the HTTP server and every denoiser that answers count."""
    permit_watching(request)
    home = house(request)
    pages: list[list[Metric]] = []
    with suppress(UnavailableError):
        pages = await home.replicas.everywhere("metrics", patience=_PATIENCE)
    pages.insert(0, list(home.traffic.collect()))
    registry = CollectorRegistry()
    registry.register(_Collected(merge(pages)))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": content_type})


class _Collected(Collector):
    """Metrics that were collected elsewhere."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> list[Metric]:
        """Them."""
        return self._found
