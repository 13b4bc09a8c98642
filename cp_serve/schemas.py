"""The HTTP contract's bodies (docs/http.md)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SEED_LIMIT = 2**32
MAX_PREVIEWS = 3
DEFAULT_PREVIEWS = 2
_NO_EFFECT = "Accepted, without effect."
_Ignored = Annotated[Any, Field(repr=False, description=_NO_EFFECT)]


class GenerationRequest(BaseModel):
    """Body of `POST /v1/images/generations`: OpenAI's fields and ours."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"model": "pets", "prompt": "a photo of a <fox>"}]}
    )

    model: str = Field(description="`L`, `L@7`, `L@live`, `L@candidate`, or `base`.", min_length=1, max_length=64)
    prompt: str = Field(min_length=1, max_length=1000, repr=False, description="Concepts are written `<name>`.")
    n: int = Field(1, ge=1, le=8)
    size: str = Field("auto", max_length=16, description="`auto` or the base's own `WxH`.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    user: str | None = Field(
        None, max_length=256, repr=False, description="Who asks, for fairness between people; never kept or logged."
    )
    seed: int | None = Field(
        None, ge=0, lt=SEED_LIMIT, description="Image i is drawn from `seed + i`; drawn at random if left out."
    )
    steps: int = Field(25, ge=1, le=100)
    guidance_scale: float = Field(3.0, ge=0, le=50, allow_inf_nan=False, description="At most 1: no guidance.")
    negative_prompt: str = Field("", max_length=1000, repr=False)
    sampler: str = Field("ddim", max_length=32)
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=MAX_PREVIEWS, description="Previews of each image in a stream; 2 if left out."
    )
    stream_progress: bool = Field(False, description="In a stream, one more event for every step.")
    deadline_seconds: float | None = Field(
        None, gt=0, le=86400, allow_inf_nan=False, description="Seconds to wait at most; the server's own limit stands."
    )

    background: _Ignored = None
    complexity: _Ignored = None
    frame_count: _Ignored = None
    frame_duration_ms: _Ignored = None
    moderation: _Ignored = None
    output_compression: _Ignored = None
    quality: _Ignored = None
    safety_identifier: _Ignored = None
    style: _Ignored = None
    svg: _Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, body: Any) -> Any:
        """In OpenAI's API null stands for the default."""
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body

    @property
    def warnings(self) -> list[str]:
        """One line for each parameter that was given and has no effect here."""
        lines = [f"{name} has no effect here." for name in IGNORED if getattr(self, name) is not None]
        if self.negative_prompt and self.guidance_scale <= 1:
            lines.append("negative_prompt has no effect with a guidance_scale of at most 1.")
        if not self.stream:
            given = {"partial_images": self.partial_images is not None, "stream_progress": self.stream_progress}
            lines += [f"{name} has no effect without stream." for name, is_given in given.items() if is_given]
        return lines

    @property
    def previews(self) -> int:
        """Previews of each image."""
        return DEFAULT_PREVIEWS if self.partial_images is None else self.partial_images


IGNORED = tuple(name for name, field in GenerationRequest.model_fields.items() if field.description == _NO_EFFECT)
"""OpenAI's parameters that mean nothing here."""


class Picture(BaseModel):
    """One generated image: the file in base64, or a link to it."""

    b64_json: str | None = None
    url: str | None = Field(None, description="Signed; it expires.")
    seed: int


class GenerationResponse(BaseModel):
    """Answer of `POST /v1/images/generations`."""

    created: int
    model: str = Field(description="The version that drew: `L@number`, or `base`.")
    data: list[Picture]
    digest: str = Field(description="Digest of the version, or the base's revision.")
    timings: dict[str, float] = Field(description="Seconds.")
    warnings: list[str]


class Usage(BaseModel):
    """OpenAI's; nothing here is counted in tokens."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}
    output_tokens: int = 0
    total_tokens: int = 0


class StreamedImage(BaseModel):
    """What both of OpenAI's events of a stream have, and ours: `image` is which of the `n` it is."""

    b64_json: str
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"] = "auto"
    size: str
    image: int
    seed: int
    model: str


class PartialImageEvent(StreamedImage):
    """Data of an `image_generation.partial_image`: the picture as it is expected to become."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int
    step: int
    steps: int


class CompletedEvent(StreamedImage):
    """Data of an `image_generation.completed`."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage = Usage()
    digest: str
    timings: dict[str, float]
    warnings: list[str]


class ProgressEvent(BaseModel):
    """Data of an `image_generation.progress`, ours: sent only if `stream_progress` asks for it."""

    type: Literal["image_generation.progress"] = "image_generation.progress"
    step: int
    steps: int
    model: str


class Model(BaseModel):
    """A lineage or a version, in OpenAI's shape."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "palimpsest"


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class Version(BaseModel):
    """One version of a lineage; `metrics` are the last values of its run's."""

    number: int
    parent: int | None
    digest: str
    concepts: list[str]
    method: str
    base_revision: str
    run_id: str
    created: int
    gate_passed: bool
    gate_reasons: list[str]
    aliases: list[str]
    metrics: dict[str, float]


class Lineage(BaseModel):
    """Answer of `GET /v1/lineages/{L}`: the tree, each version with its parent."""

    lineage: str
    live: int | None
    candidate: int | None
    canary: "Canary | None" = None
    versions: list[Version]


class LiveRequest(BaseModel):
    """Body of `PUT /v1/lineages/{L}/live`."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)
    reason: str = Field("", max_length=500)
    canary_percent: float | None = Field(
        None, gt=0, lt=100, allow_inf_nan=False, description="Give the version this share, and leave `live` the rest."
    )


class LiveResponse(BaseModel):
    """Answer of `PUT /v1/lineages/{L}/live`."""

    lineage: str
    live: int | None
    previous: int | None
    canary: "Canary | None" = None


class Canary(BaseModel):
    """A version on trial, and its share of the lineage's requests."""

    version: int
    percent: float


class ErrorBody(BaseModel):
    """What is inside every error answer."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorResponse(BaseModel):
    """Every error answer, in OpenAI's shape."""

    error: ErrorBody
