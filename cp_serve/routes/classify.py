"""`POST /v1/lineages/{L}/classify`: which of my concepts is in this picture?"""

import asyncio

import numpy as np
from fastapi import APIRouter, Request

from cp_serve.guard import permit
from cp_serve.requests import ClassifyRequest
from cp_serve.routes.access import Name, house, while_connected
from cp_serve.routes.forms import form_schema, parse_fields, uploading
from cp_serve.schemas_learning import ClassifyFields, ClassifyResponse
from cp_serve.uploads import read_form
from services.errors import InputError
from services.images import check_images, reopen
from services.manifest import check_name

router = APIRouter(prefix="/v1/lineages", tags=["concepts"])


@router.post("/{lineage}/classify", openapi_extra=form_schema(ClassifyFields, "image", many=False))
async def classify(lineage: Name, request: Request) -> ClassifyResponse:
    """Diffusion-classifier scores of a picture over the concepts of a version, and over none of them."""
    check_name(lineage, "lineage")
    person = permit(request, lineage)
    home = house(request)
    async with uploading(home):
        form = await read_form(request, {"image"}, home.settings, max_files=1)
    fields = parse_fields(ClassifyFields, form.fields)
    if not form.files:
        raise InputError("image: give one PNG, JPEG or WebP.", param="image")
    (image,) = await asyncio.to_thread(check_images, form.files, home.settings)
    wanted = ClassifyRequest(
        lineage=lineage,
        version=fields.version,
        picture=np.asarray(reopen(image.png)),
        trials=fields.trials,
        person=home.signer.sign("person", person.name or (request.client.host if request.client else "")),
        deadline_seconds=fields.deadline_seconds,
    )
    found = await while_connected(request, home.replicas.classify(wanted))
    return ClassifyResponse(
        model=found.model,
        digest=found.digest,
        label=max(found.probabilities, key=lambda name: found.probabilities[name]),
        probabilities=found.probabilities,
        timings=found.timings,
    )
