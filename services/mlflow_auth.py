"""The local stack's MLflow behind a password of its own, where the HTTP API asks for tokens.

Nobody has a permission that was not granted to them; the one account, `palimpsest`, is the administrator's and the
stack's own. Nothing of MLflow's defaults is left: neither its password, nor that everybody may read.
"""

import importlib.util
import secrets
from collections.abc import Mapping

from services.errors import UnavailableError
from services.secret_files import kept_secret, secrets_folder
from services.settings import Settings

USER = "palimpsest"
FLAGS = ("--app-name", "basic-auth")
"""Of the server's command line."""
_BYTES = 32
_CONFIG = """[mlflow]
default_permission = NO_PERMISSIONS
grant_default_workspace_access = false
admin_username = {user}
database_uri = {database}
; A check of a password costs about half a second; it is remembered for so long.
auth_cache_ttl_seconds = 60
"""


def is_guarded(settings: Settings) -> bool:
    """Whether the local stack's MLflow asks for a password."""
    return settings.auth == "tokens" and not settings.mlflow_uri


def server_environment(settings: Settings) -> dict[str, str]:
    """The variables that the server needs for it; its secrets are made if there are none.

    Raises:
        UnavailableError: a package is missing.
    """
    if not is_guarded(settings):
        return {}
    if importlib.util.find_spec("flask_wtf") is None:
        raise UnavailableError("MLflow behind a password needs more packages: pip install 'palimpsest[cluster]'.")
    folder = secrets_folder(settings)
    config = folder / "basic_auth.ini"
    own = f"sqlite:///{settings.home}/mlflow_auth.db"
    database = own if settings.database_url.startswith("sqlite:") else settings.database_url
    config.touch(mode=0o600)
    config.write_text(_CONFIG.format(user=USER, database=database.replace("%", "%%")))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": kept_secret(folder / "mlflow_password", secrets.token_urlsafe(_BYTES)),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": kept_secret(folder / "mlflow_flask_key", secrets.token_urlsafe(_BYTES)),
    }


def client_environment(settings: Settings) -> Mapping[str, str]:
    """The variables with which this process and its children sign in; none where nobody has to, or nobody can yet."""
    password = settings.home / "secrets" / "mlflow_password"
    if not is_guarded(settings) or not password.exists():
        return {}
    return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": password.read_text()}
