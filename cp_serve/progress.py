"""What a streamed request tells on its way: from the denoiser's and the decoder's threads to an event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

from torch import Tensor

from cp_serve.batch import Drawing
from cp_serve.requests import DrawRequest, Progress


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """After which steps partial pictures are shown: evenly spread, none at the end."""
    spread = {steps * (index + 1) // (previews + 1) for index in range(previews)}
    return tuple(sorted(step for step in spread if 0 < step < steps))


class Watch:
    """An asynchronous iterator over the progress of one request, until `end`."""

    def __init__(self, request: DrawRequest, loop: asyncio.AbstractEventLoop) -> None:
        self._steps, self._loop = request.steps, loop
        self._shown = preview_steps(request.steps, request.previews)
        self._news: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._done = [0] * len(request.seeds)
        self._model = ""

    def attach(self, drawings: Sequence[Drawing], model: str) -> None:
        """Watch these drawings, the request's images in order, of a version."""
        self._model = model
        for image, drawing in enumerate(drawings):
            drawing.previews = frozenset(self._shown)
            drawing.report = partial(self._report, image)

    def end(self) -> None:
        """There is no more to come. Called on the event loop."""
        self._news.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """What happened, as it happens."""
        while (news := await self._news.get()) is not None:
            yield news

    def _report(self, image: int, step: int, picture: Tensor | None) -> None:
        """Called in the denoiser's thread, or with a picture in the decoder's."""
        try:
            self._loop.call_soon_threadsafe(self._take, image, step, picture)
        except RuntimeError:  # the loop was closed: nobody listens any more
            return

    def _take(self, image: int, step: int, picture: Tensor | None) -> None:
        slowest = min(self._done)
        if picture is None:
            self._done[image] = step
            if min(self._done) > slowest:
                self._news.put_nowait(Progress(min(self._done), self._steps, self._model))
        else:
            index = self._shown.index(step)
            self._news.put_nowait(Progress(step, self._steps, self._model, index, image, picture.numpy()))
