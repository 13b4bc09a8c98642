"""`POST /v1/lineages/{L}/concepts`: pictures in, a learning job out."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from cp_serve.house import House
from cp_serve.preflight import preflight
from cp_serve.routes.access import Key, Name, house, once, registry_call, store_call
from cp_serve.routes.forms import form_schema, parse_fields, uploading
from cp_serve.schemas_learning import Finding, LearnRequest, LearnResponse
from cp_serve.uploads import read_form
from services.errors import ConflictError, NotFoundError, PalimpsestError
from services.images import CheckedImage, check_images, digest_of_all
from services.jobs import job_info, submit_job
from services.lineage import LIVE, Registry
from services.manifest import check_name, check_noun

router = APIRouter(prefix="/v1/lineages", tags=["concepts"])
_PATIENCE = 5.0
_ID_LENGTH = 32


@router.post("/{lineage}/concepts", status_code=202, openapi_extra=form_schema(LearnRequest, "images", many=True))
async def learn_concept(lineage: Name, request: Request, response: Response, key: Key = None) -> LearnResponse:
    """Check pictures, hold them, and submit the job that learns from them; the same as `ray job submit` would."""
    check_name(lineage, "lineage")
    home = house(request)
    async with uploading(home):
        form = await read_form(request, {"images"}, home.settings, max_files=home.settings.max_images)
        wanted = parse_fields(LearnRequest, form.fields)
        check_name(wanted.name, "name")
        check_noun(wanted.noun)
        images = await asyncio.to_thread(check_images, form.files, home.settings)
        del form
        asked = f"{wanted.model_dump_json()}\n{digest_of_all([image.digest for image in images])}"
        answer = await once(
            request,
            response,
            key,
            asked=asked,
            work=lambda: _learn(home, lineage, wanted, images, f"{key}\n{asked}" if key else ""),
            kind=LearnResponse,
        )
    response.headers["Location"] = f"/v1/jobs/{answer.job_id}"
    return answer


async def _learn(
    home: House, lineage: str, wanted: LearnRequest, images: Sequence[CheckedImage], once_for: str
) -> LearnResponse:
    if not wanted.again:
        await registry_call(lambda: _check_unknown(home.registry, lineage, wanted.name))
    findings = await _findings(home, images)
    eta = await registry_call(lambda: _eta(home.registry, lineage, wanted.steps))
    job_id = await store_call(lambda: _submit(home, lineage, wanted, images, once_for))
    return LearnResponse(
        job_id=job_id, lineage=lineage, name=wanted.name, images=len(images), findings=findings, eta_seconds=eta
    )


def _check_unknown(registry: Registry, lineage: str, name: str) -> None:
    """Raise `ConflictError` if the live version knows a concept of that name."""
    with suppress(NotFoundError):  # a lineage without versions knows nothing
        number = registry.aliases(lineage).get(LIVE)
        if number is not None and name in registry.version(lineage, number).concepts:
            raise ConflictError(
                f"Version {number} of {lineage} knows <{name}> already: choose another name, or roll back.",
                param="name",
            )


async def _findings(home: House, images: Sequence[CheckedImage]) -> list[Finding]:
    status = await home.replicas.status(patience=_PATIENCE)
    return await asyncio.to_thread(preflight, images, int(str(status["image_size"])))


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


def _submit(home: House, lineage: str, wanted: LearnRequest, images: Sequence[CheckedImage], once_for: str) -> str:
    """Hold the images and submit the job. Its id follows from `once_for`, where that says something: never a second."""
    address, text = home.settings.jobs, f"{lineage}\n{once_for or uuid4().hex}"
    job_id = f"learn-{hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]}"
    if once_for:
        with suppress(NotFoundError):
            return job_info(address, job_id).id
    intake_id = home.intake.hold(images)
    base = ["--base", home.settings.base] if home.settings.base != "embedded" else []
    arguments = ["--lineage", lineage, *wanted.arguments, "--images", intake_id, *base]
    try:
        return submit_job(address, arguments, job_id=job_id)
    except BaseException:
        with suppress(PalimpsestError):  # otherwise its time-to-live does it
            home.intake.release(intake_id)
        raise
