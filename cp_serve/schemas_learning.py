"""The HTTP contract's bodies for concepts, jobs and classification (docs/http.md)."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cp_serve.schemas import SEED_LIMIT

_Flag = Annotated[bool, BeforeValidator(lambda value: False if value == "" else value)]


class LearnRequest(BaseModel):
    """The text fields of `POST /v1/lineages/{L}/concepts`; `images` are its files."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=64, description="The concept's name; prompts write it `<name>`.")
    noun: str = Field(max_length=64, description="What it is, in a word or two; empty if nothing fits.")
    method: str | None = Field(None, pattern="^[a-z][a-z0-9_]{0,31}$", description="Learning method.")
    steps: int | None = Field(None, ge=1, le=100_000, description="Training steps.")
    rank: int | None = Field(None, ge=1, le=1024, description="LoRA rank of a new lineage.")
    seed: int | None = Field(None, ge=0, lt=SEED_LIMIT, description="Of every random draw.")
    again: _Flag = Field(False, description="Learn even if the same was learned before.")

    @property
    def arguments(self) -> list[str]:
        """The fields as arguments of the job."""
        given = {"method": self.method, "steps": self.steps, "rank": self.rank, "seed": self.seed}
        words = [word for flag, value in given.items() if value is not None for word in (f"--{flag}", str(value))]
        return ["--concept", self.name, "--noun", self.noun, *words, *(["--again"] if self.again else [])]


class Finding(BaseModel):
    """What preflight found in the images; none of it stops the job."""

    kind: Literal["duplicate", "near_duplicate", "too_small", "blurred", "too_few", "too_many"]
    images: list[str]
    message: str


class LearnResponse(BaseModel):
    """Answer of `POST /v1/lineages/{L}/concepts`."""

    job_id: str
    lineage: str
    name: str
    images: int = Field(description="Different pictures that were taken.")
    findings: list[Finding]
    eta_seconds: float | None = Field(description="From the job's start; null where nothing is known to judge by.")


class Progress(BaseModel):
    """How far the training is."""

    step: int
    steps: int
    loss: float | None
    eta_seconds: float | None


class Job(BaseModel):
    """Answer of `GET /v1/jobs/{id}`."""

    id: str
    object: Literal["job"] = "job"
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    lineage: str
    name: str
    created: int | None = Field(description="Seconds since 1970.")
    finished: int | None
    progress: Progress | None
    version: int | None = Field(description="The version that came out.")
    live: bool | None = Field(description="Whether it went live.")
    error: str | None = Field(description="What is wrong, in one line.")


class ClassifyFields(BaseModel):
    """The text fields of `POST /v1/lineages/{L}/classify`; `image` is its file."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(
        "live", pattern="^(live|candidate|[0-9]{1,9})$", description="`live`, `candidate` or a number."
    )
    trials: int = Field(32, ge=1, le=256, description="Noises that the scores are averaged over.")
    deadline_seconds: float | None = Field(None, gt=0, le=86400, allow_inf_nan=False, description="Seconds to wait.")


class ClassifyResponse(BaseModel):
    """Answer of `POST /v1/lineages/{L}/classify`."""

    model: str
    digest: str
    label: str = Field(description="The most probable concept, or `none`.")
    probabilities: dict[str, float] = Field(description="Of each concept and of `none`; they add up to 1.")
    timings: dict[str, float]
