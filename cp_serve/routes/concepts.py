"""`POST /v1/lineages/{L}/concepts`: pictures in, a learning job out."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from cp_serve.guard import permit, person_of
from cp_serve.house import House
from cp_serve.preflight import preflight
from cp_serve.routes.access import Key, Name, house, once, registry_call, store_call
from cp_serve.routes.forms import form_schema, parse_fields, uploading
from cp_serve.schemas_learning import LearnRequest, LearnResponse
from cp_serve.uploads import read_form
from services.auth import Person
from services.errors import ConflictError, ForbiddenError, NotFoundError, PalimpsestError
from services.images import CheckedImage, check_images, digest_of_all
from services.jobs import job_info, submit_job
from services.lease import leave_place, take_place
from services.lineage import LIVE, Registry
from services.manifest import BaseRef, check_name, check_noun
from services.methods import check_method
from services.objects import ObjectStore

router = APIRouter(prefix="/v1/lineages", tags=["concepts"])
_PATIENCE = 5.0
_ID_LENGTH = 32


@router.post("/{lineage}/concepts", status_code=202, openapi_extra=form_schema(LearnRequest, "images", many=True))
async def learn_concept(lineage: Name, request: Request, response: Response, key: Key = None) -> LearnResponse:
    """Check pictures, hold them, and submit the job that learns from them; the same as `ray job submit` would."""
    check_name(lineage, "lineage")
    person = person_of(request)
    if person.right(lineage):
        permit(request, lineage, "owner")
    home = house(request)
    async with uploading(home):
        form = await read_form(request, {"images"}, home.settings, max_files=home.settings.max_images)
        wanted = parse_fields(LearnRequest, form.fields)
        check_name(wanted.name, "name")
        check_noun(wanted.noun)
        if wanted.method is not None:
            check_method(wanted.method)
        images = await asyncio.to_thread(check_images, form.files, home.settings)
        del form
        asked = f"{wanted.model_dump_json()}\n{digest_of_all([image.digest for image in images])}"
        answer = await once(
            request,
            response,
            key,
            person=person.name,
            asked=asked,
            work=lambda: _learn(_Submission(home, person, lineage, wanted, images, f"{key}\n{asked}" if key else "")),
            kind=LearnResponse,
        )
    response.headers["Location"] = f"/v1/jobs/{answer.job_id}"
    return answer


@dataclass(frozen=True, eq=False)
class _Submission:
    """Pictures that were checked, and what is to be done with them.

    Attributes:
        once_for: the job's id follows from it, where it says something.
    """

    home: House
    person: Person
    lineage: str
    wanted: LearnRequest
    images: Sequence[CheckedImage]
    once_for: str


async def _learn(asked: _Submission) -> LearnResponse:
    home, lineage, wanted = asked.home, asked.lineage, asked.wanted
    with home.concepts_quota.taken(asked.person, 1):
        await registry_call(lambda: _begin(home, asked.person, lineage))
        if not wanted.again:
            await registry_call(lambda: _check_unknown(home.registry, lineage, wanted.name))
        status = await home.replicas.status(patience=_PATIENCE)
        await registry_call(lambda: _check_base(home, lineage, str(status["base_revision"])))
        findings = await asyncio.to_thread(preflight, asked.images, int(str(status["image_size"])))
        eta = await registry_call(lambda: _eta(home.registry, lineage, wanted.steps))
        job_id = await store_call(lambda: _submit(asked))
    count = len(asked.images)
    return LearnResponse(
        job_id=job_id, lineage=lineage, name=wanted.name, images=count, findings=findings, eta_seconds=eta
    )


def _begin(home: House, person: Person, lineage: str) -> None:
    """Make the caller the owner of a lineage that nobody began yet.

    Raises:
        ForbiddenError: it is somebody else's, or they own as many as they may.
    """
    if person.right(lineage) == "owner":
        return
    if not person.name:
        raise ForbiddenError("Only people may learn; this token sees figures.", param="lineage")
    if home.registry.exists(lineage):
        raise ForbiddenError(f"`{lineage}` belongs to somebody else; choose another name.", param="lineage")
    most = home.settings.quota_lineages
    if most and len(person.owns) >= most:
        raise ForbiddenError(f"You own {len(person.owns)} lineages, at most {most}: learn in one of them.")
    home.people.claim(person.name, lineage)
    home.door.forget(person.name)


def _check_unknown(registry: Registry, lineage: str, name: str) -> None:
    """Raise `ConflictError` if the live version knows a concept of that name."""
    with suppress(NotFoundError):  # a lineage without versions knows nothing
        number = registry.aliases(lineage).get(LIVE)
        if number is not None and name in registry.version(lineage, number).concepts:
            raise ConflictError(
                f"Version {number} of {lineage} knows <{name}> already: choose another name, or roll back.",
                param="name",
            )


def _check_base(home: House, lineage: str, revision: str) -> None:
    """Raise `RefusedError` if the lineage belongs to another base: its job would."""
    with suppress(NotFoundError):  # a lineage without versions belongs to none
        home.registry.check_base(lineage, BaseRef(id=home.settings.base, revision=revision))


def _eta(registry: Registry, lineage: str, steps: int | None) -> float | None:
    """Seconds that the lineage's live version took, or another lineage's if it has none, for as many steps."""
    live = registry.live_versions()
    for name in (lineage, *live):
        if name in live:
            with suppress(PalimpsestError):  # a version that cannot be read is no measure
                known = registry.manifest(name, live[name]).provenance
                share = steps / float(known.settings["loop.steps"]) if steps and "loop.steps" in known.settings else 1.0
                if "seconds" in known.metrics:
                    return round(known.metrics["seconds"] * share, 1)
    return None


def _submit(asked: _Submission) -> str:
    """Hold the images, queue up, and submit the job; with `once_for` never a second one."""
    home, lineage, address = asked.home, asked.lineage, asked.home.settings.jobs
    job_id = _job_id(f"{lineage}\n{asked.once_for or uuid4().hex}")
    if asked.once_for:
        with suppress(NotFoundError):
            while (known := job_info(address, job_id)).status == "failed":  # for want of its images, perhaps
                job_id = _job_id(job_id)
            return known.id
    intake_id = home.intake.hold(asked.images)
    try:
        with _queued(home.store, lineage, job_id) as place:
            return submit_job(address, [*_arguments(asked, intake_id), "--place", str(place)], job_id=job_id)
    except BaseException:
        with suppress(PalimpsestError):  # otherwise its time-to-live does it
            home.intake.release(intake_id)
        raise


def _job_id(text: str) -> str:
    return f"learn-{hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]}"


def _arguments(asked: _Submission, intake_id: str) -> list[str]:
    """Of the job."""
    base, person = asked.home.settings.base, asked.person.name
    own = ["--lineage", asked.lineage, *asked.wanted.arguments, "--images", intake_id]
    return [*own, *(["--base", base] if base != "embedded" else []), *(["--actor", person] if person else [])]


@contextmanager
def _queued(store: ObjectStore, lineage: str, job_id: str) -> Iterator[int]:
    """A place in the lineage's queue of writers: jobs learn in the order of their submissions, not of their starts."""
    place = take_place(store, lineage, holder=job_id)
    try:
        yield place
    except BaseException:
        with suppress(PalimpsestError):  # otherwise those behind wait it out
            leave_place(store, lineage, place)
        raise
