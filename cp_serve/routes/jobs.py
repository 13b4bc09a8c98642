"""`/v1/jobs/{id}`: how a learning job goes, as one answer or as events, and stopping it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from cp_serve.guard import person_of
from cp_serve.house import House
from cp_serve.routes.access import Responses, house, registry_call, store_call
from cp_serve.schemas_learning import Job, Progress
from cp_serve.sse import MEDIA_TYPE, EventStream, event
from services.errors import InputError, UnavailableError
from services.joblog import JobLog
from services.jobs import JobInfo, job_info, job_log, no_such_job, stop_job, tail_job
from services.lease import leave_place

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JobId = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$")]
_EVENTS: Responses = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "`job.updated`, `job.log`, and at last `job.finished`."}
}
_BREAKS = 5
"""So often a log may break off before the stream ends with an error."""


@router.get("/{job_id}")
async def get_job(job_id: JobId, request: Request) -> Job:
    """State and progress."""
    info = await _permitted(request, job_id)
    return await registry_call(lambda: _read(house(request), info))


@router.delete("/{job_id}")
async def delete_job(job_id: JobId, request: Request) -> Job:
    """Stop a job that is not over, and delete the images that it held; again, nothing happens."""
    home, info = house(request), await _permitted(request, job_id)
    if not info.over:
        await registry_call(lambda: stop_job(home.settings.jobs, job_id))
    await store_call(lambda: _release(home, info))
    return await registry_call(lambda: _read_anew(home, job_id))


@router.get("/{job_id}/events", response_class=Response, responses=_EVENTS)
async def get_events(job_id: JobId, request: Request) -> EventStream:
    """State, progress and the job's own lines as they come, until it is over."""
    home, info = house(request), await _permitted(request, job_id)
    first = await registry_call(lambda: _read(home, info))
    return EventStream(_follow(home, job_id, first))


async def _permitted(request: Request, job_id: str) -> JobInfo:
    """What is known of a job, for an owner of its lineage; nobody else may even know of it."""
    info = await registry_call(lambda: job_info(house(request).settings.jobs, job_id))
    if person_of(request).right(info.argument("--lineage")) != "owner":
        raise no_such_job()
    return info


def _read_anew(home: House, job_id: str) -> Job:
    return _read(home, job_info(home.settings.jobs, job_id))


def _read(home: House, info: JobInfo) -> Job:
    log = JobLog(info.argument("--concept"), lambda _: None)
    log.take(job_log(home.settings.jobs, info.id))
    return _job(info, log)


def _release(home: House, info: JobInfo) -> None:
    """Let go of what was taken for a job: its images, and its place in the queue if it never began."""
    place = info.argument("--place")
    if info.status == "queued" and place.isdecimal():
        leave_place(home.store, info.argument("--lineage"), int(place))
    with suppress(InputError):  # images of the user's own folder or bucket are not ours to delete
        home.intake.release(info.argument("--images"))


async def _follow(home: House, job_id: str, job: Job) -> AsyncGenerator[bytes, None]:
    """The events of a job. A log that breaks off is read again from its beginning; what was told is not told again."""
    yield _event("job.updated", job)
    told = 0
    for left in reversed(range(_BREAKS)):
        lines: list[str] = []
        log = JobLog(job.name, lines.append)
        try:
            async with aclosing(tail_job(home.settings.jobs, job_id)) as pieces:
                async for piece in pieces:
                    log.take(piece)
                    for line in lines[told:]:
                        yield event("job.log", {"line": line})
                    told = max(told, len(lines))
                    if (now := job.model_copy(update=_changes(log))) != job:
                        job = now
                        yield _event("job.updated", job)
            break
        except UnavailableError:
            if not left:
                raise
    yield _event("job.finished", await registry_call(lambda: _read_anew(home, job_id)))


def _changes(log: JobLog) -> dict[str, object]:
    """What the log alone tells of a job that runs."""
    return {"status": "running", "progress": _progress(log), "error": log.error or None}


def _event(name: str, job: Job) -> bytes:
    return event(name, job.model_dump(mode="json"))


def _job(info: JobInfo, log: JobLog) -> Job:
    outcome = log.outcome or {}
    return Job(
        id=info.id,
        status=info.status,
        lineage=info.argument("--lineage"),
        name=info.argument("--concept"),
        created=None if info.created is None else int(info.created),
        finished=None if info.finished is None else int(info.finished),
        progress=_progress(log),
        version=outcome.get("version"),
        live=outcome.get("live"),
        error=log.error or None,
    )


def _progress(log: JobLog) -> Progress | None:
    found = log.progress
    if found is None:
        return None
    return Progress(step=found.step, steps=found.steps, loss=found.loss, eta_seconds=found.eta_seconds)
