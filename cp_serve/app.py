"""The Ray Serve application: an HTTP ingress in front of the denoiser's replicas."""

import logging
import threading
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions
from ray.serve.handle import DeploymentHandle

from cp_serve.denoiser import Denoiser
from cp_serve.house import House
from cp_serve.http import build_app
from cp_serve.janitor import sweep_forever
from cp_serve.routing import router
from cp_serve.scaling import by_images
from services.errors import PalimpsestError
from services.lineage import Registry
from services.objects import open_store
from services.patience import outlast
from services.settings import Settings
from services.telemetry import configure_logging, configure_traces
from services.webhook import ensure_webhook

NAME = "palimpsest"
_DRAIN_SECONDS = 10.0
"""Beyond the deadline of the last request that a replica took."""
_HEALTH_SECONDS = 2.0
"""Between two looks at a replica's threads; it is replaced when it has failed three."""
_LOOK_SECONDS, _UPSCALE_SECONDS = 15.0, 5.0
"""Over what the load is averaged, and how long it must be too much. Serve's own 30 seconds each would fill the queue
before a new replica is even begun."""
_START_SECONDS = 3600.0
"""For which MLflow and the store are waited for at the start."""
log = logging.getLogger("palimpsest.http")


@serve.ingress()
class Api:
    """The ingress; holds no weights."""

    def __init__(self, settings: Settings, denoiser: DeploymentHandle) -> None:
        configure_logging(settings.log_format)
        configure_traces(settings.traces, NAME)
        self.house = house = open_house(settings, denoiser)
        sweeps = {
            "submissions of concept images": lambda now: len(house.intake.expire(now)),
            "pictures": house.pictures.expire,
            "answers": house.answers.expire,
        }
        sweep_forever(sweeps)
        threading.Thread(target=_hook_up, args=(settings,), name="webhook", daemon=True).start()

    def __serve_build_asgi_app__(self) -> object:
        return build_app(self.house)


def open_house(settings: Settings, denoiser: Any) -> House:
    """The house, with the key that it signs with: the store is asked for that here, and not in a request.

    Serve gives a deployment up that failed three times to start, so an outage of the store is waited out.
    """
    store = open_store(settings)
    house = House(settings, Registry(settings, store), denoiser, store)
    outlast(lambda: house.signer, seconds=_START_SECONDS, say=log.warning)
    return house


def _hook_up(settings: Settings) -> None:
    """Set MLflow's webhook up, as soon as MLflow answers. Without it polling does."""
    try:
        if outlast(lambda: ensure_webhook(settings), seconds=_START_SECONDS, say=log.warning):
            log.info("MLflow tells of moves at %s", settings.webhook_url)
    except PalimpsestError as error:
        log.warning("there is no webhook, so moves are seen by polling alone: %s", error.message)


def application(settings: Settings) -> serve.Application:
    """The application graph for `serve.run`.

    The engine's queue is the one that refuses, at once. Ray's limits lie beyond it, else requests would wait there.
    A replica that is let go finishes what it took, which is over by its deadline.
    """
    in_flight = settings.max_batch + settings.max_queue
    drain = settings.deadline_seconds + _DRAIN_SECONDS
    denoiser = serve.deployment(Denoiser).options(
        name="denoiser",
        max_ongoing_requests=4 * in_flight,
        max_queued_requests=in_flight,
        request_router_config=router(),
        graceful_shutdown_timeout_s=drain,
        health_check_period_s=_HEALTH_SECONDS,
        ray_actor_options={"num_cpus": 0, "num_gpus": settings.replica_gpus},
        **scaling(settings),
    )
    api = serve.deployment(Api).options(
        name="api",
        max_ongoing_requests=10 * in_flight * max(settings.replicas, settings.max_replicas),
        graceful_shutdown_timeout_s=drain,
        ray_actor_options={"num_cpus": 0},
    )
    return api.bind(settings, denoiser.bind(settings))


def scaling(settings: Settings) -> dict[str, Any]:
    """How many replicas of the denoiser there are: a fixed number, or as many as keep each one's batch full."""
    if settings.max_replicas <= settings.replicas:
        return {"num_replicas": settings.replicas}
    config = AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.max_batch,
        policy=AutoscalingPolicy(policy_function=by_images),
        look_back_period_s=_LOOK_SECONDS,
        upscale_delay_s=_UPSCALE_SECONDS,
        downscale_delay_s=settings.downscale_seconds,
    )
    return {"autoscaling_config": config}


def deploy(settings: Settings) -> None:
    """Start the application on the running Ray cluster, and return once it is ready."""
    ray.init(address=f"{settings.host}:{settings.ray_port}", log_to_driver=False, logging_level="warning")
    serve.start(http_options=HTTPOptions(host=settings.host, port=settings.http_port))
    serve.run(application(settings), name=NAME)
