"""All settings, read from `PALIMPSEST_*` environment variables; none is required on one machine."""

from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.errors import InputError

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Where things are and how much is allowed. `docs/operations.md` lists every field."""

    model_config = SettingsConfigDict(env_prefix="PALIMPSEST_", frozen=True)

    home: Path = Field(
        default_factory=lambda: Path.home() / ".palimpsest",
        description="Folder of the local stack: databases, store, logs, process ids.",
    )
    base: str = Field("embedded", description="Base model: `embedded`, a directory, or a hub id.")
    threads: int = Field(0, ge=0, description="CPU threads of one training worker or replica; 0: all cores.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`, `cpu` or `cuda`.")

    host: str = Field("127.0.0.1", description="Loopback address that the local stack's servers bind to.")
    http_port: Port = Field(8000, description="Port of the HTTP API.")
    mlflow_port: Port = Field(5000, description="Port of the local MLflow server.")
    ray_port: Port = Field(6379, description="Port of the local Ray head.")
    dashboard_port: Port = Field(8265, description="Port of Ray's dashboard and job API.")
    mlflow_uri: str = Field("", description="MLflow server; empty: the local one.")
    ray_address: str = Field("", description="Ray job API, http://…; empty: the local one.")

    store: str = Field("", description="Object store: a directory or `s3://bucket/prefix`; empty: `home/store`.")
    s3_endpoint: str = Field("", description="Endpoint of an S3-compatible server; empty: AWS.")

    max_images: int = Field(64, ge=1, description="Images of one concept, at most.")
    max_image_bytes: int = Field(10 * 2**20, ge=1, description="Bytes of one image, at most.")
    max_image_pixels: int = Field(25_000_000, ge=1, description="Pixels of one image, at most.")
    intake_ttl_days: float = Field(
        7.0, gt=0, description="Days after which images of an unfinished concept are deleted."
    )

    train_workers: int = Field(1, ge=1, description="Ray Train workers of one job.")
    checkpoint_steps: int = Field(50, ge=1, description="Training steps between two checkpoints.")
    max_failures: int = Field(3, ge=0, description="Worker deaths that one job survives.")
    outage_seconds: float = Field(
        900.0, ge=0, description="Seconds that a job, once it has learned, waits for MLflow or the store to be back."
    )
    lease_seconds: float = Field(30.0, gt=0, description="Silence after which a lineage's writer counts as dead.")

    samples: bool = Field(
        True, description="Draw sample pictures of every concept with each version, and keep them in MLflow."
    )

    gate_features: str = Field(
        "auto",
        description="Image features that the gate compares by: `auto` (the base's own), or a CLIP's or DINO's name.",
    )
    gate_kv: float = Field(
        1.2, ge=0, description="Relative change of the keys and values of an earlier concept's prompt, at most."
    )
    gate_mmd: float = Field(1700.0, ge=0, description="Drift (MMD) of an earlier concept's pictures, at most.")
    gate_similarity: float = Field(
        0.65,
        ge=-1,
        le=1,
        description="Similarity of an earlier concept's pictures to those its parent draws, at least.",
    )
    gate_dc_drop: float = Field(
        0.5, ge=0, le=1, description="Share of an earlier concept's pictures that are not told apart any more, at most."
    )
    gate_base_kv: float = Field(
        1.2, ge=0, description="Relative change of the keys and values of a generic prompt, at most."
    )
    gate_base_mmd: float = Field(1000.0, ge=0, description="Drift (MMD) of generic pictures, at most.")
    gate_base_similarity: float = Field(
        0.8, ge=-1, le=1, description="Similarity of generic pictures to those its parent draws, at least."
    )
    gate_new_similarity: float = Field(
        0.25, ge=-1, le=1, description="Similarity of the new concept's pictures to its own images, at least."
    )
    gate_new_loss: float = Field(
        1.1, ge=0, description="Denoising error of the new concept's images, as a share of its parent's, at most."
    )

    replicas: int = Field(1, ge=1, description="Serve replicas of the denoiser.")
    replica_gpus: float = Field(0.0, ge=0, description="GPUs that a replica reserves.")
    worker_gpus: float = Field(
        1.0, gt=0, le=1, description="GPUs that a training worker on CUDA reserves; below 1 it shares its card."
    )
    follow_seconds: float = Field(1.0, gt=0, description="Seconds between two looks at the registry.")
    max_batch: int = Field(16, ge=1, description="Images in one denoising batch of a replica.")
    max_queue: int = Field(64, ge=1, description="Images waiting in a replica before it answers 503.")
    deadline_seconds: float = Field(120.0, gt=0, description="Seconds that one request may take.")

    public_url: str = Field(
        "",
        description="URL under which clients reach the HTTP API: what links begin with, and where the command "
        "`palimpsest` asks; empty: the local one.",
    )
    max_replicas: int = Field(
        0,
        ge=0,
        description="Replicas that load, a full batch of images each, may grow the denoiser to; "
        "up to `replicas` means always `replicas`.",
    )
    downscale_seconds: float = Field(300.0, ge=0, description="Seconds of less load before a replica is let go.")
    max_upload_bytes: int = Field(256 * 2**20, ge=1, description="Bytes of one upload's files together, at most.")
    body_seconds: float = Field(120.0, gt=0, description="Seconds that a client may take to send its body.")
    picture_seconds: float = Field(3600.0, gt=0, description="Seconds that the link to a picture works.")
    answer_seconds: float = Field(
        86400.0, gt=0, description="Seconds that the answer to a request with an `Idempotency-Key` is kept."
    )
    auth: Literal["off", "tokens"] = Field(
        "off",
        description="Who may use the HTTP API: `off`, whoever reaches it; `tokens`, whom `palimpsest invite` let in.",
    )
    token: str = Field("", repr=False, description="Token that the command `palimpsest` shows to the HTTP API.")
    watch_token: str = Field(
        "", repr=False, description="Token, besides administrators', that may read `/metrics`, with `auth`."
    )
    quota_pictures: int = Field(
        1000, ge=0, description="Pictures that one person may have drawn in an hour, with `auth`; 0: any number."
    )
    quota_concepts: int = Field(
        50, ge=0, description="Concepts that one person may submit in a day, with `auth`; 0: any number."
    )
    quota_lineages: int = Field(
        20, ge=0, description="Lineages that one person may own and still begin another, with `auth`; 0: any number."
    )
    webhook_secret: str = Field(
        "", repr=False, description="Secret of MLflow's webhook to `/v1/hooks/mlflow`; empty: none is taken."
    )
    webhook_url: str = Field(
        "",
        description="`/v1/hooks/mlflow` as MLflow reaches it; with a secret the HTTP API sets the webhook up itself.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Log lines of the servers: `text` or `json`.")
    traces: str = Field("", description="OTLP/HTTP endpoint that OpenTelemetry traces go to; empty: none.")

    bank_bytes: int = Field(4 * 2**30, ge=1, description="Memory of a replica for adapter versions, in bytes.")
    prompt_bytes: int = Field(
        256 * 2**20, ge=0, description="Memory of a replica for repeated prompts' keys and values, in bytes."
    )
    request_bytes: int = Field(
        2 * 2**30, ge=1, description="Memory of a replica for the keys and values of requests, in bytes."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of the serving U-Net: `float32`, or `bfloat16` for CUDA."
    )
    compile_unet: Literal["none", "default", "reduce-overhead", "max-autotune"] = Field(
        "none", description="`torch.compile` mode of the serving U-Net; `reduce-overhead` uses CUDA graphs."
    )

    backend: Literal["embedded", "postgres-s3"] = Field(
        "embedded", description="Of the local stack: `embedded` (SQLite, a directory) or `postgres-s3`, with servers."
    )
    database: str = Field("", description="SQLAlchemy URL of MLflow's database; empty: the backend's own.", repr=False)
    postgres_port: Port = Field(5433, description="Port of the backend's PostgreSQL server.")
    s3_port: Annotated[int, Field(ge=1, le=65528)] = Field(
        9000, description="Port of the backend's S3 server, which takes the seven after it as well."
    )
    retention_days: float = Field(30.0, ge=0, description="Days that an abandoned branch is kept from `palimpsest gc`.")

    @model_validator(mode="after")
    def _settle(self) -> Self:
        """Refuse an address that others reach; make folders absolute, for processes that run elsewhere."""
        if not ip_address(self.host).is_loopback:
            raise ValueError("the local stack has no authentication; give a loopback address such as 127.0.0.1")
        absolute: dict[str, object] = {"home": self.home.expanduser().absolute()}
        if self.store and "://" not in self.store:
            absolute["store"] = str(Path(self.store).expanduser().absolute())
        if self.backend == "postgres-s3" and not self.store:
            absolute["store"] = "s3://palimpsest/store"
            absolute["s3_endpoint"] = self.s3_endpoint or f"http://{self.host}:{self.s3_port}"
        if Path(self.base).is_dir():
            absolute["base"] = str(Path(self.base).absolute())
        for name, value in absolute.items():
            object.__setattr__(self, name, value)
        return self

    def environment(self) -> dict[str, str]:
        """The variables from which another process reads these same settings, without a person's own token."""
        values = self.model_dump(mode="json", exclude={"token"})
        return {f"PALIMPSEST_{name.upper()}": str(value) for name, value in values.items()}

    @property
    def remembered(self) -> Path:
        """File that has the backend with which this home's lineages are kept, once there are any."""
        return self.home / "backend"

    @property
    def mlflow(self) -> str:
        """URI of the MLflow server."""
        return self.mlflow_uri or f"http://{self.host}:{self.mlflow_port}"

    @property
    def jobs(self) -> str:
        """URL of Ray's job API."""
        return self.ray_address or f"http://{self.host}:{self.dashboard_port}"

    @property
    def api(self) -> str:
        """URL of the local HTTP API."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def public(self) -> str:
        """URL under which clients reach the HTTP API, without a trailing slash."""
        return (self.public_url or self.api).rstrip("/")

    @property
    def store_uri(self) -> str:
        """Root of the object store, without a trailing slash."""
        return (self.store or str(self.home / "store")).rstrip("/")

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the database of the local MLflow server."""
        if self.database or self.backend == "embedded":
            return self.database or f"sqlite:///{self.home}/mlflow.db"
        return f"postgresql+psycopg2://palimpsest@{self.host}:{self.postgres_port}/mlflow"


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read once.

    Raises:
        InputError: a variable has a value that its setting does not take.
    """
    try:
        settings = Settings()
        if "backend" in settings.model_fields_set or not settings.remembered.is_file():
            return settings
        return Settings(backend=settings.remembered.read_text().strip())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]) or "host"
        raise InputError(f"PALIMPSEST_{name.upper()}: {first['msg']}.", param=name) from None
