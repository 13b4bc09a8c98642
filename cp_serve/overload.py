"""Overload: what no replica had room or time for a moment ago is not taken from replica to replica again.

A request that one replica refuses is taken to the others. Where all are full that would multiply the refusals, which
come in crowds, by the number of replicas, just when they have most to do. So once all have refused a request, one
replica's word stands for the next ones like it, of as many images or more: from anybody if it was for want of room or
time everywhere, from the same person if somewhere it was their share.
"""

import time
from collections.abc import Callable, Sequence

from cp_serve.requests import ClassifyRequest, DrawRequest
from services.errors import BusyError, QuotaError

_SECONDS = 0.1
"""For which one replica's word stands for all. Places come and go with every step."""
_ANYBODY = ""

Request = DrawRequest | ClassifyRequest
Refusal = BusyError | QuotaError


class Overload:
    """What all replicas have refused of late.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[tuple[type, str], tuple[float, int]] = {}  # until when, and of how many images

    def note(self, request: Request, refusals: Sequence[Refusal]) -> None:
        """All have refused a request, in these words."""
        now = self._clock()
        self._refused = {key: (until, images) for key, (until, images) in self._refused.items() if now < until}
        personal = any(isinstance(refusal, QuotaError) for refusal in refusals)
        key = type(request), request.person if personal else _ANYBODY
        _, images = self._refused.get(key, (now, request.images))
        if request.images <= images:  # else that of the smaller request stands, for its own time
            self._refused[key] = now + _SECONDS, request.images

    def stands_for_all(self, request: Request, refusal: Refusal) -> bool:
        """Whether the others would refuse as well what one has refused."""
        people = {request.person} if isinstance(refusal, QuotaError) else {request.person, _ANYBODY}
        found = [self._refused.get((type(request), person), (0.0, 0)) for person in people]
        return any(self._clock() < until and request.images >= images for until, images in found)
