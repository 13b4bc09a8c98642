"""Latents to pictures in a thread beside the denoiser, those of one step as one batch."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cp_serve.batch import Drawing
from cp_serve.metrics import Metrics
from services.base_model import BaseModel
from services.errors import RefusedError

log = logging.getLogger("palimpsest.decoder")

_PIXELS = 2**20
"""Pixels decoded at once: the VAE's memory grows with them."""


@dataclass(frozen=True, eq=False)
class Job:
    """A latent [C, H, W] to decode for a drawing.

    Attributes:
        step: the drawing's step, if it is a preview; None for the finished picture.
    """

    drawing: Drawing
    latent_CHW: Tensor
    step: int | None = None

    def deliver(self, picture: Tensor) -> None:
        """Hand over uint8 [H, W, 3]."""
        if self.step is None:
            if self.drawing.picture.set_running_or_notify_cancel():
                self.drawing.picture.set_result(picture)
        elif self.drawing.report:
            self.drawing.report(self.step, picture)

    def fail(self, error: Exception) -> None:
        """Say why there is no picture; a preview is just left out."""
        if self.step is None:
            fail(self.drawing, error)


def fail(drawing: Drawing, error: Exception) -> None:
    """Tell whoever waits for a drawing, unless it was cancelled or is done."""
    if not drawing.picture.done() and drawing.picture.set_running_or_notify_cancel():
        drawing.picture.set_exception(error)


class Decoder:
    """The thread; what is put in together is decoded together, and with nothing else, however long the line is.

    So a request alone always gets the same bits: another size of batch may round otherwise.
    """

    def __init__(self, base: BaseModel, metrics: Metrics) -> None:
        self._base, self._metrics = base, metrics
        self._chunk = max(1, _PIXELS // base.image_size**2)
        self._stream = torch.cuda.Stream(base.device) if base.device.type == "cuda" else None
        self._changed = threading.Condition()  # guards the next two
        self._groups: deque[Sequence[Job]] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def put(self, jobs: Sequence[Job]) -> None:
        """Decode these as soon as possible."""
        with self._changed:
            self._groups.append(jobs)
            self._changed.notify()

    def stop(self) -> None:
        """Decode what was put in, then end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while jobs := self._take():
            wanted = [job for job in jobs if not job.drawing.picture.done()]
            for start in range(0, len(wanted), self._chunk):
                self._decode(wanted[start : start + self._chunk])

    def _take(self) -> Sequence[Job]:
        """What was put in together and waits longest; empty once stopped and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._groups or self._stopped)
            return self._groups.popleft() if self._groups else ()

    def _decode(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        try:
            pictures = self._pictures(jobs)
        except Exception as error:
            log.error("decoding %d pictures failed: %s", len(jobs), type(error).__name__)
            self._each_alone(jobs, error)
        else:
            self._metrics.decode.observe(time.monotonic() - started)
            for job, picture in zip(jobs, pictures, strict=True):
                _hand_over(job, picture)

    def _each_alone(self, jobs: list[Job], error: Exception) -> None:
        """One of several must not take the others with it."""
        if len(jobs) == 1:
            jobs[0].fail(error)
            return
        for job in jobs:
            self._decode([job])

    def _pictures(self, jobs: list[Job]) -> Tensor:
        with self._beside():
            latents = torch.stack([job.latent_CHW for job in jobs]).to(self._base.vae.dtype)
            return self._base.decode_latents(latents).cpu()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On CUDA a stream of its own: on the denoiser's, the next step would wait behind this."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._base.device))  # which made the latents
        with torch.cuda.stream(self._stream):
            yield


def _hand_over(job: Job, picture: Tensor) -> None:
    """A version that drew numbers that are not finite must not pass for one that drew black."""
    if job.latent_CHW.isfinite().all():
        job.deliver(picture)
    else:
        job.fail(RefusedError("The version's picture is not made of finite numbers; draw with another version."))
