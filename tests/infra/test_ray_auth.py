"""Ray's head as the compose stack starts it: whoever has no token may ask whether it lives, and nothing else."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.infra.files import compose
from tests.ports import free_ports

TOKEN = "generated-0123456789-0123456789-0123456789"
_START_SECONDS = 600


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """URL of the dashboard of a running head, which leaves nothing in the folder that all of Ray's clusters share."""
    short = tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)  # Ray's sockets live in it
    with short as folder, running(Path(folder)) as url:
        yield url


@contextmanager
def running(folder: Path) -> Iterator[str]:
    service = compose()["services"]["ray-head"]
    program, *arguments = service["command"]
    assert program == "ray"
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    gcs, dashboard, metrics, agent, client = free_ports(5)
    here = {
        "--node-ip-address=10.203.0.10": "--node-ip-address=127.0.0.1",
        "--dashboard-host=0.0.0.0": "--dashboard-host=127.0.0.1",
        "--port=6379": f"--port={gcs}",
        "--dashboard-port=8265": f"--dashboard-port={dashboard}",
        "--metrics-export-port=8080": f"--metrics-export-port={metrics}",
    }
    assert set(here) <= set(arguments)
    ours = [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", *(here.get(flag, flag) for flag in arguments), *ours]
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{dashboard}", time.monotonic() + _START_SECONDS
        while not alive(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()  # `--block` takes its children along
        process.wait()


def alive(url: str) -> bool:
    """What the containers' health check asks, without a token."""
    try:
        return requests.get(f"{url}/api/gcs_healthz", timeout=5).ok
    except requests.RequestException:
        return False


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_nobody_hands_in_a_job_without_the_token(head: str, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    job = {"entrypoint": "true"}
    assert requests.post(f"{head}/api/jobs/", json=job, headers=headers, timeout=60).status_code in (401, 403)
    assert requests.get(f"{head}/api/jobs/", headers=headers, timeout=60).status_code in (401, 403)
    assert requests.get(f"{head}/api/serve/applications/", headers=headers, timeout=60).status_code in (401, 403)


def test_the_token_opens_it(head: str) -> None:
    answer = requests.get(f"{head}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    assert (answer.status_code, answer.json()) == (200, [])


def test_our_own_client_takes_the_token_from_the_environment(head: str) -> None:
    """In a process of its own: Ray reads the variables once."""
    code = f"from services.jobs import stop_jobs; print(stop_jobs({head!r}, patience=1))"
    for token, said in ((TOKEN, "0\n"), ("wrong", "")):
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert result.stdout == said
        assert (result.returncode == 0) == (token == TOKEN)
