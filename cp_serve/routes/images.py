"""`POST /v1/images/generations`, at once or as a stream, and the pictures that links lead to."""

import asyncio
import base64
import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from cp_serve.choice import BASE
from cp_serve.guard import permit, person_of
from cp_serve.house import House
from cp_serve.idempotency import HEADER
from cp_serve.pictures import encode
from cp_serve.requests import Drawn, DrawRequest, Progress
from cp_serve.routes.access import Key, Responses, house, naming_model, once, split_model, store_call, while_connected
from cp_serve.schemas import (
    SEED_LIMIT,
    CompletedEvent,
    GenerationRequest,
    GenerationResponse,
    PartialImageEvent,
    Picture,
    ProgressEvent,
)
from cp_serve.sse import MEDIA_TYPE, EventStream, event
from services.errors import InputError
from services.telemetry import span

router = APIRouter(prefix="/v1", tags=["images"])
_NOT_MODIFIED = 304
_STREAM: Responses = {200: {"content": {MEDIA_TYPE: {}}, "description": "The pictures, or with `stream` the events."}}
_FILE: Responses = {
    200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}, "description": "The file."},
    304: {"description": "The client has it already: its `If-None-Match` names the ETag."},
}


@router.post(
    "/images/generations", response_model=GenerationResponse, response_model_exclude_none=True, responses=_STREAM
)
async def generate(body: GenerationRequest, request: Request, response: Response, key: Key = None) -> object:
    """Draw pictures. The answer's `model` says which version drew them."""
    wanted = _wanted(request, body, key)
    if body.stream:
        if key is not None:
            raise InputError(f"{HEADER}: a stream cannot be answered a second time.", param=HEADER)
        if body.response_format == "url":
            raise InputError("response_format: a stream brings b64_json.", param="response_format")
        return await _stream(body, request, wanted)
    return await once(
        request,
        response,
        key,
        person=person_of(request).name,
        asked=body.model_dump_json(),
        work=lambda: _draw(body, request, wanted),
        kind=GenerationResponse,
        seconds=house(request).settings.picture_seconds if body.response_format == "url" else math.inf,
    )


def _wanted(request: Request, body: GenerationRequest, key: str | None) -> DrawRequest:
    """What a replica is asked; the seeds are fixed here, so that it may be asked again."""
    lineage, version = split_model(body.model)
    if lineage != BASE:
        with naming_model():
            permit(request, lineage)
    host = request.client.host if request.client else ""
    first = _first_seed(request, body, key) if body.seed is None else body.seed
    return DrawRequest(
        lineage=lineage,
        version=version,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        seeds=tuple((first + i) % SEED_LIMIT for i in range(body.n)),
        steps=body.steps,
        guidance=body.guidance_scale,
        sampler=body.sampler,
        size=body.size,
        person=house(request).signer.sign("person", person_of(request).name or body.user or host),
        deadline_seconds=body.deadline_seconds,
    )


def _first_seed(request: Request, body: GenerationRequest, key: str | None) -> int:
    """A random one, which the key decides where there is one: carried out twice, it gives the same pictures."""
    if key is None:
        return secrets.randbelow(SEED_LIMIT)
    asked, person = body.model_dump_json(), person_of(request).name
    return house(request).answers.seed(key, asked, person=person) % SEED_LIMIT


async def _draw(body: GenerationRequest, request: Request, wanted: DrawRequest) -> GenerationResponse:
    home = house(request)
    share, person = home.pictures_quota, person_of(request)
    with naming_model(), share.taken(person, body.n), span("draw", steps=body.steps, n=body.n) as attributes:
        drawn = await while_connected(request, home.replicas.draw(wanted))
        attributes |= {"model": drawn.model, **drawn.timings}
        files = await _files(drawn, body.output_format)
        if body.response_format == "url":
            urls = [await store_call(lambda f=file: home.pictures.keep(f, body.output_format)) for file in files]  # type: ignore[misc]
            data = [Picture(url=url, seed=seed) for url, seed in zip(urls, wanted.seeds, strict=True)]
        else:
            data = [Picture(b64_json=_b64(file), seed=seed) for file, seed in zip(files, wanted.seeds, strict=True)]
    return GenerationResponse(
        created=int(time.time()),
        model=drawn.model,
        data=data,
        digest=drawn.digest,
        timings=drawn.timings,
        warnings=body.warnings,
    )


async def _stream(body: GenerationRequest, request: Request, wanted: DrawRequest) -> EventStream:
    """The answer begins with the first thing that a replica says, so that what is refused has a status of its own."""
    home = house(request)
    items = home.replicas.stream(replace(wanted, previews=body.previews))
    with ExitStack() as until_first:
        until_first.enter_context(home.pictures_quota.taken(person_of(request), body.n))
        with naming_model():
            first = await while_connected(request, anext(items))
        share = until_first.pop_all()  # to be given back if the rest breaks down
    return EventStream(_counted(home, share, _events(body, wanted, first, items)))


async def _counted(home: House, share: ExitStack, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    with share, home.traffic.streams.track_inprogress():
        async with aclosing(events) as open_events:
            async for chunk in open_events:
                yield chunk


async def _events(
    body: GenerationRequest, wanted: DrawRequest, first: Progress | Drawn, items: AsyncGenerator[Progress | Drawn, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(items) as later:
        item: Progress | Drawn | None = first
        while isinstance(item, Progress):
            if item.preview is not None:
                yield await _partial(body, wanted, item)
            elif body.stream_progress:
                yield _event(ProgressEvent(step=item.step, steps=item.steps, model=item.model))
            item = await anext(later, None)
        if item is not None:
            for number, file in enumerate(await _files(item, body.output_format)):
                yield _completed(body, wanted, item, number, file)


async def _partial(body: GenerationRequest, wanted: DrawRequest, item: Progress) -> bytes:
    assert item.preview is not None
    assert item.image is not None
    assert item.index is not None
    file = await asyncio.to_thread(encode, item.preview, body.output_format)
    return _event(
        PartialImageEvent(
            b64_json=_b64(file),
            created_at=int(time.time()),
            output_format=body.output_format,
            size=_size(item.preview.shape),
            image=item.image,
            seed=wanted.seeds[item.image],
            model=item.model,
            partial_image_index=item.index,
            step=item.step,
            steps=item.steps,
        )
    )


def _completed(body: GenerationRequest, wanted: DrawRequest, drawn: Drawn, number: int, file: bytes) -> bytes:
    return _event(
        CompletedEvent(
            b64_json=_b64(file),
            created_at=int(time.time()),
            output_format=body.output_format,
            size=_size(drawn.pictures[number].shape),
            image=number,
            seed=wanted.seeds[number],
            model=drawn.model,
            digest=drawn.digest,
            timings=drawn.timings,
            warnings=body.warnings,
        )
    )


def _event(data: PartialImageEvent | CompletedEvent | ProgressEvent) -> bytes:
    return event(data.type, data.model_dump(mode="json"))


async def _files(drawn: Drawn, output_format: str) -> list[bytes]:
    return await asyncio.to_thread(lambda: [encode(picture, output_format) for picture in drawn.pictures])


def _b64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


@router.get("/pictures/{name}", response_class=Response, responses=_FILE)
async def get_picture(
    name: Annotated[str, Path(max_length=128)], request: Request, signature: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """The file behind a link of `response_format` `url`, until it expires."""
    pictures = house(request).pictures
    kept = await store_call(lambda: pictures.open(name, signature))
    headers = {
        "ETag": kept.etag,
        "Cache-Control": f"private, immutable, max-age={max(0, kept.expires - int(time.time()))}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {kept.etag, "*"}:
        return Response(status_code=_NOT_MODIFIED, headers=headers)
    return Response(kept.data, media_type=kept.media_type, headers=headers)
