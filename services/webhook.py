"""MLflow's webhook to the HTTP API: a hint that something moved, and the only word of a move that was overruled.

Whoever serves the hook sets it up, at every start: then its secret is the present one.
"""

import base64
import os
import secrets
from dataclasses import dataclass

from services.runs import Server
from services.secret_files import kept_secret, secrets_folder
from services.settings import Settings

NAME = "palimpsest"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
PATH = "/v1/hooks/mlflow"
_BYTES = 32


@dataclass(frozen=True)
class HookSecrets:
    """What the local stack's MLflow signs with, and what it encrypts that with in its database (a Fernet key)."""

    signing: str
    encryption: str


def ensure_webhook(settings: Settings) -> bool:
    """Have one webhook of ours, with the address and secret of the settings; False if they name none.

    Raises:
        InputError: MLflow does not take such an address; MLFLOW_WEBHOOK_ALLOWED_SCHEMES and
            MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS of its server say what it takes.
        UnavailableError: MLflow does not answer.
    """
    if not (settings.webhook_url and settings.webhook_secret):
        return False
    server = Server(settings.mlflow)
    client, url, events = server.client, settings.webhook_url, list(EVENTS)
    ours = [hook.webhook_id for hook in server.search(client.list_webhooks) if hook.name == NAME]
    if ours:
        server.ask(client.update_webhook, ours[0], url=url, events=events, secret=settings.webhook_secret)
    else:
        server.once(client.create_webhook, NAME, url, events, secret=settings.webhook_secret)
    for again in ours[1:]:
        server.ask(client.delete_webhook, again)
    return True


def local_secrets(settings: Settings) -> HookSecrets:
    """The local stack's own, made if there are none."""
    folder = secrets_folder(settings)
    signing = kept_secret(folder / "webhook", secrets.token_urlsafe(_BYTES))
    encryption = kept_secret(folder / "webhook_encryption", base64.urlsafe_b64encode(os.urandom(_BYTES)).decode())
    return HookSecrets(settings.webhook_secret or signing, encryption)
