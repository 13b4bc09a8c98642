"""Ray jobs. The only file that speaks to Ray's job API."""

import asyncio
import json
import os
import shlex
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from services.errors import NotFoundError, UnavailableError

_LOOK_SECONDS = 0.5
_ENTRYPOINT = ("python", "-m", "cp_train")
_STATUS: dict[str, "JobStatus"] = {
    "PENDING": "queued",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "cancelled",
}

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class JobInfo:
    """What Ray knows of a learning job.

    Attributes:
        arguments: of `python -m cp_train`.
        created, finished: seconds since 1970; None where it is not known (yet).
    """

    id: str
    status: JobStatus
    arguments: tuple[str, ...]
    created: float | None
    finished: float | None

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status not in {"queued", "running"}

    def argument(self, flag: str) -> str:
        """The value of a flag; empty if it was not given."""
        found = [value for name, value in zip(self.arguments, self.arguments[1:], strict=False) if name == flag]
        return found[-1] if found else ""


def current_job_id() -> str:
    """Submission id of the Ray job that this process is the entry point of; empty outside a job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return str(config.get("metadata", {}).get("job_submission_id", ""))


def submit_job(address: str, arguments: Sequence[str], *, job_id: str | None = None) -> str:
    """Submit `python -m cp_train` with some arguments; returns the job's id.

    Args:
        address: Ray's job API.
        arguments: of the job.
        job_id: an id of one's own: a job that has it already is not submitted again.

    Raises:
        UnavailableError: Ray does not answer; nothing was submitted, as far as can be known.
    """
    import requests

    with _client(address) as client:
        try:
            made: str = client.submit_job(entrypoint=shlex.join([*_ENTRYPOINT, *arguments]), submission_id=job_id)
        except (RuntimeError, ConnectionError, requests.RequestException):  # or only its answer was lost
            if job_id is None or _find(client, job_id) is None:
                raise
            return job_id
        return made


def job_info(address: str, job_id: str) -> JobInfo:
    """What is known of a learning job.

    Raises:
        NotFoundError: Ray has no such job, or it does not run `cp_train`.
        UnavailableError: Ray does not answer.
    """
    with _client(address) as client:
        found = _find(client, job_id)
    words = _words(found.entrypoint) if found else ()
    if found is None or words[: len(_ENTRYPOINT)] != _ENTRYPOINT:
        raise no_such_job()
    times = [None if at is None else at / 1000 for at in (found.start_time, found.end_time)]
    status = _STATUS.get(found.status.value, "running")
    return JobInfo(job_id, status, words[len(_ENTRYPOINT) :], *times)


def no_such_job() -> NotFoundError:
    """What to raise for a job that is not there."""
    return NotFoundError("There is no such job.", param="job_id")


def job_log(address: str, job_id: str) -> str:
    """A job's whole log so far.

    Raises:
        UnavailableError: Ray does not answer.
    """
    with _client(address) as client:
        log: str = client.get_job_logs(job_id)
        return log


async def tail_job(address: str, job_id: str) -> AsyncGenerator[str, None]:
    """A job's log, piece by piece, until the job's end.

    Raises:
        UnavailableError: the log breaks off; the job may go on.
    """
    with _errors(address):
        client = await asyncio.to_thread(_connect, address)
        async with aclosing(client.tail_job_logs(job_id)) as pieces:
            async for piece in pieces:
                yield piece


def stop_job(address: str, job_id: str) -> None:
    """Ask a job to stop; nothing happens if it is over.

    Raises:
        UnavailableError: Ray does not answer.
    """
    with _client(address) as client:
        client.stop_job(job_id)


def stop_jobs(address: str, *, patience: float) -> int:
    """Stop every job that runs and wait until they cleaned up, at most `patience` seconds; returns how many.

    Raises:
        UnavailableError: Ray does not answer.
    """
    with _client(address) as client:
        running = [
            job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()
        ]
        for job_id in running:
            client.stop_job(job_id)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(not client.get_job_status(job).is_terminal() for job in running):
            time.sleep(_LOOK_SECONDS)
        return len(running)


def _find(client: Any, job_id: str) -> Any:
    """What Ray says of a job; None if it has none of that id."""
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def _words(entrypoint: str) -> tuple[str, ...]:
    """The words of a job's command line; none if it is not one that can be read."""
    try:
        return tuple(shlex.split(entrypoint))
    except ValueError:
        return ()


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    with _errors(address):
        yield _connect(address)


@contextmanager
def _errors(address: str) -> Iterator[None]:
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UnavailableError(
            f"Ray's job API at {address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from error
    except (ConnectionError, RuntimeError, requests.RequestException, aiohttp.ClientError) as error:
        raise UnavailableError(f"Ray's job API at {address} does not answer; `palimpsest up` starts it.") from error
