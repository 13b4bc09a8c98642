"""`POST /v1/hooks/mlflow`: MLflow's registry webhooks, a hint to look at the registry now and not at the next poll.

MLflow signs a delivery as Standard Webhooks does: `X-MLflow-Signature: v1,<base64 of HMAC-SHA256(secret, M)>` with
M = `<X-MLflow-Delivery-Id>.<X-MLflow-Timestamp>.<body>`. Nothing that a delivery says is believed: the aliases are read
anew from the registry, and a move that the history has not is looked into.
"""

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from cp_serve.routes.access import house, registry_call
from services.errors import PalimpsestError, UnavailableError
from services.manifest import NAME

log = logging.getLogger("palimpsest.http")
router = APIRouter(prefix="/v1/hooks", tags=["hooks"])
_UNAUTHORIZED, _NOT_FOUND = 401, 404
_TOLERANCE = 300.0
"""Seconds that a delivery may be old: an older one is a replay."""


@router.post("/mlflow", status_code=204, response_class=Response)
async def mlflow_hook(request: Request) -> Response:
    """Heed a signed webhook of MLflow's registry. Without `PALIMPSEST_WEBHOOK_SECRET` there is no such route."""
    home = house(request)
    if not (secret := home.settings.webhook_secret):
        raise HTTPException(_NOT_FOUND)
    body = await request.body()
    if not signed(secret, request.headers.get, body, time.time()):
        raise HTTPException(_UNAUTHORIZED)
    home.replicas.hint()
    home.traffic.hints.inc()
    if told := told_of(body):
        try:
            await registry_call(lambda: home.registry.look_into(*told))
        except UnavailableError:  # MLflow tells it again
            raise
        except PalimpsestError as error:  # the hint was heeded
            log.warning("a move that MLflow told of was not looked into: %s", error.message)
    return Response(status_code=204)


def told_of(body: bytes) -> tuple[str, str, int, datetime] | None:
    """Lineage, alias, version and moment of a move that a delivery tells of; None if it tells of something else."""
    try:
        event = json.loads(body)
        data, moment = event["data"], datetime.fromisoformat(event["timestamp"])
        name, alias, number = str(data["name"]), str(data["alias"]), int(data["version"])
    except (ValueError, LookupError, TypeError):
        return None
    return (name, alias, number, moment) if moment.tzinfo and NAME.fullmatch(name) else None


def signed(secret: str, header: Callable[[str, str], str], body: bytes, now: float) -> bool:
    """Whether a delivery is MLflow's own, and fresh at `now` (seconds since 1970)."""
    delivery, timestamp, signature = (
        header(f"x-mlflow-{part}", "") for part in ("delivery-id", "timestamp", "signature")
    )
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp[:12])) > _TOLERANCE:
        return False
    message = b".".join([delivery.encode(), timestamp.encode(), body])
    digest = base64.b64encode(hmac.new(secret.encode(), message, hashlib.sha256).digest())
    return hmac.compare_digest(signature.encode(), b"v1," + digest)
