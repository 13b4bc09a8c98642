"""The local stack: how its servers are started, watched and stopped. `palimpsest up` and the tests share this."""

import hashlib
import os
import random
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import requests

from services import mlflow_auth
from services.backends import backend_environment, backend_servers, check_choice, remember
from services.errors import ConflictError, UnavailableError
from services.jobs import stop_jobs
from services.objects import open_store
from services.processes import find, start, stop
from services.runs import ARTIFACTS
from services.settings import Settings
from services.webhook import PATH, local_secrets

_START_SECONDS = 300
_SOCKET_ROOM = 38
_CLEAN_UP_SECONDS = 20
_RARE_PORTS = range(30_000, 32_768)  # below those that systems hand out, above those of Ray's workers


def mlflow_command(settings: Settings) -> list[str]:
    """The command line of the local MLflow server: artifacts straight in our store, the database in its environment."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1"),
        *("--default-artifact-root", open_store(settings).uri(ARTIFACTS), "--no-serve-artifacts"),
        *(mlflow_auth.FLAGS if mlflow_auth.is_guarded(settings) else ()),
    ]


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """The environment of the local MLflow server: ours, and what makes it small, quiet and private."""
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": settings.database_url,  # not for everybody to read in the list of processes
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 600 MB of workers for features that we do not use
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # The webhook goes to this machine's HTTP API.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": local_secrets(settings).encryption,
        "PYTHONSAFEPATH": "1",  # a module in the user's folder must not shadow one of the server's
        **mlflow_auth.server_environment(settings),
    }
    if settings.s3_endpoint:
        environment["MLFLOW_S3_ENDPOINT_URL"] = settings.s3_endpoint
    return environment


def ray_command(settings: Settings) -> list[str]:
    """The command line of the local Ray head; it stays in the foreground and takes its children along when it ends."""
    agent, client = islice(_free_ports(settings.host), 2)
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--node-ip-address={settings.host}", f"--port={settings.ray_port}"),
        *(f"--dashboard-host={settings.host}", f"--dashboard-port={settings.dashboard_port}"),
        # Ports that only Ray itself uses, but that it fixes: two clusters on one machine would fight for them.
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--temp-dir={ray_folder(settings)}", "--disable-usage-stats"),
    ]


def _free_ports(host: str) -> Iterator[int]:
    """Ports that nobody has, and that nobody is given in the seconds until Ray takes them."""
    for port in random.sample(_RARE_PORTS, len(_RARE_PORTS)):
        with suppress(OSError):
            with socket.socket() as probe:
                probe.bind((host, port))
            yield port


def ray_folder(settings: Settings) -> Path:
    """Ray's folder. Sockets live in it, and a socket's path may have 107 characters: so not always in our home."""
    folder = settings.home.absolute() / "ray"
    if len(str(folder)) <= _SOCKET_ROOM:
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"palimpsest-{os.getuid()}-{name}"


def _make_private(folder: Path) -> None:
    """Make a folder that is ours alone. Ray's fallback has a name that others can guess."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConflictError(f"{folder} belongs to somebody else; set PALIMPSEST_HOME to a shorter path.")


def ray_environment(settings: Settings) -> dict[str, str]:
    """The environment of the local Ray head, which every job and replica inherits."""
    environment = (
        os.environ
        | settings.environment()
        | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            # Else Ray demands a token once any other cluster left one in the person's home; this listens on loopback.
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces a loopback address by another interface's
            "RAY_JOB_STOP_WAIT_TIME_S": str(
                _CLEAN_UP_SECONDS
            ),  # a stopped job deletes its images and frees its lineage first
            "RAY_worker_niceness": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # every checkpoint waits for the controller's next look
            "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else a worker's lines come twice
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cp_serve.request_id.proxy_middlewares",
            "TOKENIZERS_PARALLELISM": "false",
        }
    )
    environment.pop("RAY_ADDRESS", None)
    return environment


@dataclass(frozen=True)
class Part:
    """One server of the local stack: its name, the URL that answers once it is up, and its ports and their settings."""

    name: str
    url: str
    ports: Mapping[int, str]

    def ready(self) -> bool:
        """Whether it answers."""
        return answers(self.url)


def parts(settings: Settings) -> tuple[Part, ...]:
    """The servers that have a process of their own."""
    return (
        Part("mlflow", f"{settings.mlflow}/health", {settings.mlflow_port: "PALIMPSEST_MLFLOW_PORT"}),
        Part(
            "ray",
            f"{settings.jobs}/api/version",
            {settings.dashboard_port: "PALIMPSEST_DASHBOARD_PORT", settings.ray_port: "PALIMPSEST_RAY_PORT"},
        ),
    )


class LocalStack:
    """MLflow, Ray, the Serve application and the servers of the backend on this machine.

    Args:
        settings: ports and folders.
        say: called with one line for each thing that happens.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings, self.say = settings, say
        self.run, self.logs = settings.home / "run", settings.home / "logs"
        os.environ.update(backend_environment(settings))

    def up(self) -> None:
        """Start what does not run yet and return when everything answers.

        Raises:
            ConflictError: a port is taken by somebody else, or another backend has this home's lineages.
            UnavailableError: a server died or did not answer in time; the message names its log.
        """
        settings = self.settings
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_choice(settings)
        self.backend_up()
        remember(settings)
        _make_private(ray_folder(settings))
        commands = {
            "mlflow": (mlflow_command(settings), mlflow_environment(settings)),
        }
        os.environ.update(backend_environment(settings))  # with the password that was just made
        commands["ray"] = (ray_command(settings), ray_environment(settings))
        for part in parts(settings):
            if find(part.name, folder=self.run) is None:
                for port, setting in part.ports.items():
                    self._check_free(port, setting)
                start(part.name, *commands[part.name], folder=self.run, logs=self.logs)
                self.say(f"starting {part.name}")
        for part in parts(settings):
            self._wait(part.name, part.ready)
        self._deploy()

    def backend_up(self) -> None:
        """Start the servers of the backend, one after the other. Raises as `up` does."""
        for server in backend_servers(self.settings):
            if find(server.name, folder=self.run) is None:
                for port, setting in server.ports.items():
                    self._check_free(port, setting)
                server.prepare()
                start(server.name, server.command(), os.environ, folder=self.run, logs=self.logs)
                self.say(f"starting {server.name}")
            self._wait(server.name, server.ready)

    def backend_down(self) -> None:
        """Stop the servers of the backend."""
        for server in reversed(backend_servers(self.settings)):
            if stop(server.name, folder=self.run):
                self.say(f"stopped {server.name}")

    @contextmanager
    def backend_running(self) -> Iterator[None]:
        """Have the servers of the backend for the body of a `with`; those that ran before go on. Raises as `up`."""
        down = [server for server in backend_servers(self.settings) if find(server.name, folder=self.run) is None]
        try:
            self.backend_up()
            yield
        finally:
            for server in reversed(down):
                stop(server.name, folder=self.run)

    def _check_free(self, port: int, setting: str) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.settings.host, port))
            except OSError as error:
                raise ConflictError(f"Port {port} is taken; stop what uses it or set {setting}.") from error

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            log = self.logs / f"{name}.log"
            if find(name, folder=self.run) is None:
                raise UnavailableError(f"{name} died while starting; see {log}.")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{name} did not answer within {_START_SECONDS} s; see {log}.")
            time.sleep(0.2)
        self.say(f"{name} is up")

    def _deploy(self) -> None:
        """Start the Serve application unless it answers already. It sets MLflow's webhook up by itself."""
        ready = f"{self.settings.api}/readyz"
        if answers(ready):
            return
        if not answers(f"{self.settings.api}/healthz"):
            self._check_free(self.settings.http_port, "PALIMPSEST_HTTP_PORT")
        self.say("deploying the Serve application")
        hook = {"webhook_secret": local_secrets(self.settings).signing}
        hook["webhook_url"] = self.settings.webhook_url or f"{self.settings.api}{PATH}"
        path, environment = self.logs / "deploy.log", ray_environment(self.settings.model_copy(update=hook))
        with path.open("ab") as log, suppress(subprocess.TimeoutExpired):
            command = [sys.executable, "-m", "cp_serve"]
            subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=_START_SECONDS, check=False)
        if not answers(ready):
            raise UnavailableError(f"The Serve application did not start; see {path}.")
        self.say("the Serve application is up")

    def down(self) -> None:
        """Stop what `up` started, and nothing else. Jobs that run are stopped first, and clean up after themselves."""
        if find("ray", folder=self.run) is not None:
            with suppress(UnavailableError):
                count = stop_jobs(self.settings.jobs, patience=_CLEAN_UP_SECONDS)
                self.say(f"stopped {count} running jobs")
        for part in reversed(parts(self.settings)):
            if stop(part.name, folder=self.run):
                self.say(f"stopped {part.name}")
        self.backend_down()

    def status(self) -> dict[str, str]:
        """Server -> `up`, `starting` or `down`."""
        found = {server.name: self._state(server.name, server.ready) for server in backend_servers(self.settings)}
        for part in parts(self.settings):
            found[part.name] = self._state(part.name, part.ready)
        found["serve"] = "up" if answers(f"{self.settings.api}/readyz") else "down"
        return found

    def _state(self, name: str, ready: Callable[[], bool]) -> str:
        if find(name, folder=self.run) is None:
            return "down"
        return "up" if ready() else "starting"


def answers(url: str) -> bool:
    """Whether a URL answers with success within two seconds."""
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
