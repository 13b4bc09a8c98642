"""The denoiser: one thread, one running U-Net batch, joined and left at any step.

A drawing brings its keys and values ready-made (`services/conditioning.py`), so the batch mixes people, versions,
prompts, step counts, guidance scales and samplers, and the U-Net does not know whose adapter it serves. Who is in the
batch is chosen anew at every step (`fairness.py`); finished latents are decoded beside it (`decoder.py`).

A request holds places from before it is conditioned until it is answered. One that finds no room, or could not be done
in time, is refused at once, and told when to come again: the queue is simulated at the measured pace.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter

import torch

from cp_serve.batch import Batch, Drawing, Unet
from cp_serve.decoder import Decoder, Job, fail
from cp_serve.fairness import Claim, Pace, choose, finish_times
from cp_serve.metrics import Metrics
from cp_serve.samplers import sampler_table
from cp_serve.unet import plain_unet
from services.base_model import BaseModel
from services.errors import BusyError, DeadlineError, InputError, QuotaError, UnavailableError

log = logging.getLogger("palimpsest.engine")

_SOONEST = 1.0
"""Seconds of the shortest Retry-After."""
_HOPELESS = 4.0
"""By so much must a request's time be too short for an engine that has nothing else to do to refuse it: the pace that
it knows may be that of a busier hour, and only drawing tells it better."""
_FRESH = 0.1
"""Seconds for which refusals share one simulation of the queue: they come in crowds, and must cost next to nothing."""
_WARM_ROWS = (2, 8)
_WARM_SECONDS = 1.0
"""A step on the CPU that is expected to take longer is not tried before somebody needs it."""


@dataclass(frozen=True)
class _Expected:
    """A drawing that was not submitted yet."""

    person: str
    rows: int
    remaining: int


@dataclass(eq=False)
class Places:
    """What a request holds: places for its images, and memory for its keys and values.

    Attributes:
        rows: of the U-Net's batch that one image takes; 2 with guidance.
    """

    images: int
    steps: int
    rows: int = 2
    person: str = ""
    drawings: list[Drawing] = field(default_factory=list)

    @property
    def claims(self) -> list[Claim]:
        """Its part in the queue."""
        if self.drawings:
            return [drawing for drawing in self.drawings if not drawing.picture.done()]
        return [_Expected(self.person, self.rows, self.steps)] * self.images


class Engine:
    """The running batch over one base.

    Args:
        base: what draws.
        max_batch: images in the batch.
        max_queue: images waiting for it; one more is refused.
        max_bytes: memory that the keys and values of all requests may take; at least those of one.
        unet: how the base's U-Net is run; as it is unless given.
        buckets: see `Batch`.
        metrics: where to count.

    Attributes:
        steps_done: denoising steps of the batch so far.
        pace: how long steps take.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        max_batch: int,
        max_queue: int,
        max_bytes: int = 2**40,
        unet: Unet | None = None,
        buckets: Sequence[int] = (),
        metrics: Metrics | None = None,
    ) -> None:
        self.base, self.max_batch, self.max_queue = base, max_batch, max_queue
        row_bytes = _row_bytes(base)
        if max_bytes < 2 * row_bytes:
            why = f"request_bytes: the keys and values of a single request take {2 * row_bytes} bytes."
            raise InputError(why, param="request_bytes")
        self.steps_done, self.pace = 0, Pace()
        self._rows_run: set[int] = set()
        self._metrics = metrics or Metrics()
        self._unet, self._buckets = unet or plain_unet(base), buckets
        self._bytes_left, self._row_bytes = max_bytes, row_bytes
        self._changed = threading.Condition()  # guards the next four
        self._held: list[Places] = []
        self._forecast: tuple[float, list[tuple[float, Places]]] | None = None  # when it was made
        self._claims: list[Drawing] = []
        self._stopped = False
        self._batch = self._new_batch()  # this and the next are the denoiser's own
        self._last_end: float | None = None
        self._decoder = Decoder(base, self._metrics)
        self._thread = threading.Thread(target=self._run, name="denoise", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the denoiser and the decoder run."""
        return self._thread.is_alive() and self._decoder.alive

    @property
    def load(self) -> int:
        """Images that places are held for."""
        return sum(places.images for places in self._held)

    @contextmanager
    def places(self, places: Places, *, seconds: float | None = None) -> Iterator[Places]:
        """Hold places for a request that must be done in so many seconds.

        Raises:
            BusyError: there is no room, or it could not be done in time now; `retry_after` says when. None was taken.
            QuotaError: the person has half of all places already; `retry_after` as above.
            DeadlineError: it could not be done in time even if it were alone.
            InputError: there are not so many places.
            UnavailableError: the engine was stopped.
        """
        with self._changed:
            self._check_open()
            self._check_room(places)
            if seconds is not None:
                self._check_time(places, seconds)
            self._held.append(places)
            self._bytes_left -= self._bytes_of(places)
            self._forecast = None
        try:
            yield places
        finally:
            with self._changed:
                self._held.remove(places)
                self._bytes_left += self._bytes_of(places)
                self._forecast = None

    def submit(self, drawings: Sequence[Drawing], places: Places | None = None) -> None:
        """Let drawings join the batch. The caller holds `places` for them.

        Raises:
            UnavailableError: the engine was stopped.
        """
        now = time.monotonic()
        for drawing in drawings:
            drawing.submitted = now
        with self._changed:
            self._check_open()
            self._claims.extend(drawings)
            if places:
                places.drawings.extend(drawings)
            self._changed.notify()

    def warm_up(self) -> None:
        """Run what will be run: nobody waits for a kernel to be chosen or compiled then, and the pace is known.

        On CUDA the largest batch is among it: memory that does not suffice is found out before anybody is served.
        """
        certain = bool(self._buckets) or self.base.device.type == "cuda"
        for rows in sorted({*self._buckets} or {*_WARM_ROWS, 2 * self.max_batch}):
            if rows <= 2 * self.max_batch and (certain or self.pace.seconds(rows) < _WARM_SECONDS):
                self._draw_blanks(rows)

    def stop(self) -> None:
        """Finish what was submitted, then end the threads."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()
        self._decoder.stop()

    def _draw_blanks(self, rows: int) -> None:
        """Draw with a batch of so many rows, three steps, of which the first may say nothing of the pace."""
        side, kv = int(self.base.unet.config.sample_size), _blank(self.base)
        latent = torch.zeros(self.base.latent_channels, side, side)
        pairs, single = divmod(rows, 2)
        table = sampler_table(self.base, "ddim", 3)
        kvs = [kv.expand(2, -1, -1)] * pairs + [kv] * single
        drawings = [Drawing(table, kv_RLK, 1.0, latent) for kv_RLK in kvs]
        self.submit(drawings)
        for drawing in drawings:
            drawing.picture.result()

    def _check_open(self) -> None:
        if self._stopped:
            raise UnavailableError("This replica is shutting down; try again.", retry_after=_SOONEST)

    def _check_room(self, places: Places) -> None:
        """There are places, and nobody who is known by name takes more than half of them."""
        total, load, room = self.max_batch + self.max_queue, self.load, self._bytes_left
        if places.images > total:
            raise InputError(f"n: {places.images} images at once are too many; there are {total} places.", param="n")
        if load + places.images > total or self._bytes_of(places) > room:
            why = f"{load} images are being drawn or waiting; try again later."
            after = self._until_free(load + places.images - total, self._bytes_of(places) - room)
            raise BusyError(why, retry_after=after)
        own = sum(held.images for held in self._held if held.person == places.person) if places.person else 0
        if own and (over := own + places.images - -(-total // 2)) > 0:
            why = f"{own} images of yours are being drawn or waiting; try again when some are done."
            raise QuotaError(why, retry_after=self._until_free(over, 0, places.person))

    def _until_free(self, images: int, room: int, person: str | None = None) -> float:
        """Seconds until requests are done that hold so many images and bytes; of one person, or of all."""
        now = time.monotonic()
        if self._forecast is None or now - self._forecast[0] > _FRESH:
            self._forecast = now, self._releases()
        for seconds, places in self._forecast[1]:
            if person in {None, places.person}:
                images, room = images - places.images, room - self._bytes_of(places)
            if images <= 0 and room <= 0:
                return max(_SOONEST, seconds)
        return _SOONEST

    def _releases(self) -> list[tuple[float, Places]]:
        """When each request is done if nobody else comes, the first one first: places are given back all at once."""
        claims = [(places, claim) for places in self._held for claim in places.claims]
        done = dict.fromkeys(self._held, 0.0)
        times = finish_times([claim for _, claim in claims], self.max_batch, self.pace)
        for (places, _), seconds in zip(claims, times, strict=True):
            done[places] = max(done[places], seconds)
        return sorted(((seconds, places) for places, seconds in done.items()), key=itemgetter(0))

    def _check_time(self, places: Places, seconds: float) -> None:
        before, own = self._all_claims(), places.claims
        done = max(finish_times([*before, *own], self.max_batch, self.pace)[len(before) :])
        if done <= (seconds if before else _HOPELESS * seconds):
            return
        if not before or max(finish_times(own, self.max_batch, self.pace)) > seconds:
            raise DeadlineError(
                f"This takes longer than the {seconds:.0f} seconds that there are; ask for fewer images or steps."
            )
        raise BusyError(
            f"With {self.load} images before it this could not be done in time; try again later.",
            retry_after=max(_SOONEST, done - seconds),
        )

    def _all_claims(self) -> list[Claim]:
        return [claim for places in self._held for claim in places.claims]

    def _bytes_of(self, places: Places) -> int:
        return places.rows * self._row_bytes

    def _new_batch(self) -> Batch:
        return Batch(self.base, self._unet, self.max_batch, buckets=self._buckets)

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while chosen := self._choose():
                self._arrange(chosen)
                self._advance()
        finally:
            self._close()

    def _choose(self) -> list[Drawing]:
        """Drop who has left or is done; who draws next. Waits while there is nobody; empty once stopped and done."""
        with self._changed:
            while True:
                self._claims = [drawing for drawing in self._claims if _wants_steps(drawing)]
                if self._claims or self._stopped:
                    return choose(self._claims, self.max_batch)
                self._metrics.running.set(0)
                self._metrics.waiting.set(0)
                self._last_end = None
                self._changed.wait()

    def _arrange(self, chosen: Sequence[Drawing]) -> None:
        """Let leave whoever was not chosen, and join whoever was."""
        present, wanted = set(self._batch.drawings), set(chosen)
        for drawing in present - wanted:
            self._batch.leave(drawing)
        for drawing in chosen:
            if drawing not in present:
                self._join(drawing)

    def _join(self, drawing: Drawing) -> None:
        if not drawing.started:
            drawing.started = time.monotonic()
            self._metrics.queue.observe(drawing.started - drawing.submitted)
        try:
            self._batch.join(drawing)
        except Exception as error:
            log.error("a drawing could not join the batch: %s", type(error).__name__)
            fail(drawing, error)

    def _advance(self) -> None:
        """One step of the batch. If it fails, so does every drawing of it, and the next ones get their chance."""
        drawings, rows = list(self._batch.drawings), self._batch.rows
        if not drawings:
            return
        started = time.monotonic()
        if self._last_end is not None:
            self._metrics.pause.observe(started - self._last_end)
        try:
            predicted_NCHW = self._batch.step()
            if self.base.device.type == "cuda":
                torch.cuda.current_stream(self.base.device).synchronize()  # the decoder's goes on
        except Exception as error:
            log.error("a denoising step failed: %s", type(error).__name__)
            for drawing in drawings:
                fail(drawing, error)
            self._batch = self._new_batch()
            return
        self._last_end = time.monotonic()
        self._measure(len(drawings), rows, self._last_end - started)
        self._deliver(drawings, predicted_NCHW)

    def _measure(self, images: int, rows: int, seconds: float) -> None:
        self.steps_done += 1
        if rows in self._rows_run:  # the first time kernels are chosen, or code is compiled
            self.pace.measure(rows, seconds)
        self._rows_run.add(rows)
        self._metrics.step.observe(seconds)
        self._metrics.steps.inc()
        self._metrics.images.inc(images)
        self._metrics.running.set(images)
        self._metrics.waiting.set(len(self._claims) - images)

    def _deliver(self, drawings: Sequence[Drawing], predicted_NCHW: torch.Tensor) -> None:
        """Tell of the step, and hand over to the decoder what is finished or to be shown."""
        jobs = []
        for drawing, predicted in zip(drawings, predicted_NCHW, strict=True):
            if drawing.report:
                drawing.report(drawing.step, None)
            if not drawing.remaining:
                jobs.append(Job(drawing, self._batch.latent(drawing)))
            elif drawing.step in drawing.previews:
                jobs.append(Job(drawing, predicted.clone(), drawing.step))
        if jobs:
            self._decoder.put(jobs)

    def _close(self) -> None:
        """Take no more, and tell those who would wait for ever. There are none unless the thread died of an error."""
        with self._changed:
            self._stopped = True
            left = list(self._claims)
        for drawing in left:
            fail(drawing, UnavailableError("The denoiser is restarting; try again.", retry_after=_SOONEST))


def _wants_steps(drawing: Drawing) -> bool:
    return drawing.remaining > 0 and not drawing.picture.done()


def _blank(base: BaseModel) -> torch.Tensor:
    """Keys and values of nothing, [1, L, K]."""
    return torch.zeros(1, int(base.tokenizer.model_max_length), base.packed_width)


def _row_bytes(base: BaseModel) -> int:
    """Memory of one prompt's keys and values."""
    return _blank(base).nbytes
