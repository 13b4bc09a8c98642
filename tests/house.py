"""The whole house: MLflow, Ray and the Serve application, started as `palimpsest up` starts them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.client import Client
from services.lineage import Registry
from services.local_stack import LocalStack
from services.objects import ObjectStore, open_store
from services.settings import Settings
from tests.ports import free_ports

SAMPLES = Path(__file__).parents[1] / "infra" / "samples"
QUICK = ("--steps", "24", "--fisher-batches", "4", "--batch-size", "4")
PATIENCE = 600


@dataclass(frozen=True)
class Job:
    """How a submitted job ended: exit code of the job CLI, and everything it printed."""

    exit_code: int
    log: str

    @property
    def outcome(self) -> dict[str, object]:
        """The JSON line of a job that succeeded."""
        lines = [line for line in self.log.splitlines() if line.startswith('{"lineage"')]
        assert self.exit_code == 0, self.log
        assert len(lines) == 1, self.log
        found: dict[str, object] = json.loads(lines[0])
        return found

    @property
    def error(self) -> str:
        """The one line of a job that failed."""
        assert self.exit_code == 1, self.log
        lines = {line for line in self.log.splitlines() if line.startswith("error: ")}
        assert len(lines) == 1, self.log
        assert "Traceback" not in self.log
        return lines.pop()


class House:
    """A running house and how people use it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = Client(settings.api)
        self.store: ObjectStore = open_store(settings)
        self.registry = Registry(settings, self.store)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a person at this house's terminal."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # Unbuffered: a test that acts on a line of a job's log must see it when it is written.
        return os.environ | self.settings.environment() | {"PATH": path, "PYTHONUNBUFFERED": "1"}

    def denoisers(self, application: str = "palimpsest") -> list[psutil.Process]:
        """Processes of this house's denoiser."""
        found, title, home = [], f"ServeReplica:{application}:denoiser", str(self.settings.home)
        for process in psutil.process_iter(["name", "cmdline"]):
            with suppress(psutil.Error):  # others' processes come and go
                if title in " ".join(process.info["cmdline"] or []) and home in str(process.environ()):
                    found.append(process)
        return found

    def start_job(self, *arguments: str, options: Sequence[str] = ()) -> "subprocess.Popen[str]":
        """`ray job submit [options] -- python -m cp_train …`, not waited for."""
        submit = ["ray", "job", "submit", "--address", self.settings.jobs, *options]
        command = [*submit, "--", "python", "-m", "cp_train"]
        return subprocess.Popen(
            [*command, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def job(self, *arguments: str) -> Job:
        """Submit a job with the job CLI and wait for its end."""
        return finished(self.start_job(*arguments))

    def learn(self, lineage: str, concept: str, *options: str) -> Job:
        """Learn one of the bundled concepts quickly."""
        return self.job(*learning(lineage, concept), *options)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as a person at this house's terminal would."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def serves(self, lineage: str, number: int) -> None:
        """Wait until the denoiser's live pointer of a lineage is at a version."""
        wait_until(lambda: self.client.ready()["versions"].get(lineage) == number)


def learning(lineage: str, concept: str) -> list[str]:
    """Arguments of a quick job on a bundled concept."""
    images = str(SAMPLES / concept)
    return ["--lineage", lineage, "--concept", concept, "--noun", concept, "--images", images, *QUICK]


def finished(process: "subprocess.Popen[str]") -> Job:
    """Wait for a job that `start_job` submitted."""
    try:
        log, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        log, _ = process.communicate()
        raise AssertionError(f"the job CLI did not end:\n{log}") from None
    return Job(process.returncode, log)


def reading_until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read a running job's log up to a line that matches; what was read."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if re.search(pattern, line):
            return read
    raise AssertionError(f"the job ended before {pattern!r}:\n{read}")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, generously; fail when it never holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the awaited condition never held"
        time.sleep(0.1)


@contextmanager
def private_home(**choices: Any) -> Iterator[Settings]:
    """Settings of a house in a folder of its own, which is removed after the body of the `with`.

    One thread for each worker and replica: they share the machine with other tests, and threads wait for each other.
    The gate does not ask how a new concept is drawn: jobs of 24 steps are there to be carried out.
    """
    http, mlflow, ray, dashboard = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="p", ignore_cleanup_errors=True) as home:
        yield Settings(
            home=Path(home),
            http_port=http,
            mlflow_port=mlflow,
            ray_port=ray,
            dashboard_port=dashboard,
            threads=1,
            checkpoint_steps=5,
            deadline_seconds=300.0,
            gate_new_similarity=-1.0,
            **choices,
        )


@contextmanager
def started(settings: Settings) -> Iterator[House]:
    """A running house for the body of a `with`."""
    stack = LocalStack(settings, print)
    try:
        stack.up()
        yield House(settings)
    finally:
        stack.down()


@pytest.fixture(scope="package")
def house() -> Iterator[House]:
    """The running house; stopped, and its folder removed, after the last test of the folder that asks for it."""
    with private_home() as settings, started(settings) as running:
        yield running
