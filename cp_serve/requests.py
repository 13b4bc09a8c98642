"""What a replica is asked, and what it answers."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.errors import UnavailableError
from services.telemetry import Carried

Picture = NDArray[np.uint8]
"""uint8 [H, W, 3]."""


class ReplicaDiedError(UnavailableError):
    """What a replica answers whose threads died: another one is asked."""


@dataclass
class Route:
    """Where a request has been sent. `routing.py` keeps it, in the process that asks; what crosses is a copy.

    Attributes:
        asked: ids of the replicas that it was sent to.
        others: number of those that there are besides.
    """

    asked: set[str] = field(default_factory=set)
    others: int = 0


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What to draw.

    Attributes:
        lineage: `base` means no adapter.
        version: `live`, `candidate` or a number.
        guidance: classifier-free guidance scale; at most 1 draws without, as in diffusers.
        person: who asks; people share the batch fairly. Never logged.
        deadline_seconds: from now; the replica's own deadline, if that is earlier, holds.
        previews: partial pictures of each image in a stream.
        carried: the HTTP request that this belongs to.
        route: the replicas that have been asked.
    """

    lineage: str
    version: str
    prompt: str = field(repr=False)  # so that no log has it
    negative_prompt: str = field(repr=False)
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    sampler: str
    size: str
    person: str = field(default="", repr=False)
    deadline_seconds: float | None = None
    previews: int = 0
    carried: Carried = field(default_factory=Carried)
    route: Route = field(default_factory=Route, compare=False, repr=False)

    @property
    def images(self) -> int:
        """Places that it takes."""
        return len(self.seeds)


@dataclass(frozen=True)
class Drawn:
    """Pictures, by which version they were drawn, and seconds spent.

    Attributes:
        model: `L@number`, or `base`.
        digest: of the version, or the base's revision.
        timings: seconds by name: condition, queue, draw, total.
    """

    pictures: list[Picture] = field(repr=False)
    model: str
    digest: str
    timings: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a streamed request is.

    Attributes:
        step, steps: of the request's slowest image; of a preview, the step that it shows.
        model: the version that draws.
        index, image, preview: the index-th partial picture of an image of the request, where this brings one.
    """

    step: int
    steps: int
    model: str
    index: int | None = None
    image: int | None = None
    preview: Picture | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """Which concept of a version is in a picture? `trials` noisings are scored."""

    lineage: str
    version: str
    picture: Picture = field(repr=False)
    trials: int = 32
    person: str = field(default="", repr=False)
    deadline_seconds: float | None = None
    carried: Carried = field(default_factory=Carried)
    route: Route = field(default_factory=Route, compare=False, repr=False)

    @property
    def images(self) -> int:
        """Places that it takes."""
        return 1


@dataclass(frozen=True)
class Classified:
    """Probability of each concept, in the order learned, and of `none`; they sum to 1."""

    probabilities: dict[str, float]
    model: str
    digest: str
    timings: dict[str, float]
