"""The Serve deployment that holds the base: conditions, denoises, decodes, classifies, and follows the registry."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from prometheus_client import Metric

from cp_serve.bank import Bank, Slot
from cp_serve.batch import Drawing
from cp_serve.choice import BASE, Choice, Chooser, run_in
from cp_serve.classifier import classify_picture
from cp_serve.engine import Engine, Places
from cp_serve.follower import Follower
from cp_serve.line import Line
from cp_serve.metrics import Metrics
from cp_serve.progress import Watch
from cp_serve.prompts import Prompts
from cp_serve.requests import Classified, ClassifyRequest, Drawn, DrawRequest, Picture, Progress, ReplicaDiedError
from cp_serve.samplers import sampler_table
from cp_serve.scaling import IMAGES
from cp_serve.unet import buckets_of, prepare_unet
from services.base_model import BaseModel, load_base, use_threads
from services.errors import DeadlineError, InputError, PalimpsestError, unexpected
from services.lineage import Registry
from services.objects import open_store
from services.settings import Settings
from services.telemetry import configure_logging, configure_traces, continuing, span, where

__all__ = ["BASE", "Classified", "ClassifyRequest", "Denoiser", "DrawRequest", "Drawn", "Progress"]

log = logging.getLogger("palimpsest.denoiser")

_T = TypeVar("_T")
_CLASSIFYING = 8
"""Pictures that may be in line to be classified."""


class Denoiser:
    """One replica. Its constructor returns once the batch has run and every live version is loaded, or was refused and
    the one before it is loaded.
    """

    def __init__(self, settings: Settings) -> None:
        configure_logging(settings.log_format)
        configure_traces(settings.traces, "palimpsest-denoiser")
        use_threads(settings.threads)
        self.settings, self.measured = settings, Metrics()
        self.base = load_base(settings.base, device=settings.device)
        self.registry = Registry(settings, open_store(settings))
        self.bank = Bank(self.registry, self.base, max_bytes=settings.bank_bytes, metrics=self.measured)
        self.engine = _engine(self.base, settings, self.measured)
        self._prompts = Prompts(self.base, max_bytes=settings.prompt_bytes, metrics=self.measured)
        self.follower = Follower(
            *(self.registry, self.bank),
            seconds=settings.follow_seconds,
            metrics=self.measured,
            forget=self._prompts.forget,
        )
        self._chooser = Chooser(
            *(self.registry, self.bank, self.follower.rollout, self.measured),
            seen=lambda: self.follower.seen,
            returned=self.follower.hint,
        )
        self._conditioning = ThreadPoolExecutor(1, thread_name_prefix="condition")
        self._classifying = Line("classify", _CLASSIFYING)
        self.follower.start()
        self.engine.warm_up()
        self.follower.synced.wait()

    async def draw(self, request: DrawRequest) -> Drawn | PalimpsestError:
        """Draw with the version that the request names now, whatever moves meanwhile. Cancelling it frees its places.

        Returns:
            The pictures, or what is wrong. It is not raised: Ray logs what a replica raises, trace, text and all.
            InputError: prompt, size, steps or sampler; NotFoundError: no such lineage or version; RefusedError: the
            version failed verification; UnavailableError: it is not in memory and the registry does not answer;
            BusyError: no room, or it could not be done in time now; DeadlineError: not done in time.
        """
        return await self._answer(request, self._draw(request, None))

    async def stream(self, request: DrawRequest) -> AsyncIterator[Progress | Drawn | PalimpsestError]:
        """As `draw`, with news of every step and `request.previews` partial pictures of each image before it."""
        watch = Watch(request, asyncio.get_running_loop())
        answer = asyncio.ensure_future(self._answer(request, self._draw(request, watch)))
        answer.add_done_callback(lambda _: watch.end())
        try:
            async for progress in watch:
                yield progress
            yield answer.result()
        finally:
            answer.cancel()
            await asyncio.wait({answer})

    async def classify(self, request: ClassifyRequest) -> Classified | PalimpsestError:
        """Which of a version's concepts is in a picture? Errors are answers, as those of `draw`."""
        return await self._answer(request, self._classify(request))

    async def load(self, lineage: str, number: int) -> PalimpsestError | None:
        """Bring a version into memory, verified. Returns what is wrong with it, as `draw` does."""
        try:
            await self._chooser.fetch(lineage, str(number), anew=True)
        except PalimpsestError as error:
            return error
        except Exception as error:
            log.error("unexpected %s", where(error))
            return unexpected()
        return None

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller is told, for `scaling.py`."""
        return {IMAGES: float(self.engine.load)}

    async def hint(self) -> None:
        """Somebody says that an alias has moved: look at the registry now."""
        self.follower.hint()

    async def status(self) -> dict[str, object]:
        """What is served here, for readiness and tests."""
        return {
            "versions": self.bank.pointers(),
            "refused": {lineage: refusal.why for lineage, refusal in self.follower.refused.items()},
            "load": self.engine.load,
            "image_size": self.base.image_size,
            "base_revision": self.base.ref.revision,
        }

    async def metrics(self) -> list[Metric]:
        """What this replica has measured, for `metrics.merge`."""
        self.bank.measure()
        self.follower.measure()
        return self.measured.collect()

    def check_health(self) -> None:
        """Serve asks this; a replica whose threads died is replaced."""
        if not (self.engine.alive and self.follower.alive):
            raise RuntimeError("a thread of this replica died")

    def close(self) -> None:
        """Finish what was taken and end all threads."""
        self.follower.stop()
        self.engine.stop()
        self._chooser.close()
        self._conditioning.shutdown()
        self._classifying.close()

    def __del__(self) -> None:
        """Serve calls this when it has drained a replica."""
        if hasattr(self, "_classifying"):
            self.close()

    async def _answer(self, request: DrawRequest | ClassifyRequest, work: Awaitable[_T]) -> _T | PalimpsestError:
        """The answer within the deadline, or the error that stands for it."""
        with continuing(request.carried):
            try:
                async with asyncio.timeout(self._seconds(request)):
                    return await work
            except TimeoutError:
                return DeadlineError("This was not done within the deadline; ask for fewer images or steps.")
            except PalimpsestError as error:
                return error if self.engine.alive else ReplicaDiedError(error.message)
            except Exception as error:
                log.error("unexpected %s", where(error))
                return unexpected()

    def _seconds(self, request: DrawRequest | ClassifyRequest) -> float:
        """Seconds that a request may take."""
        most = self.settings.deadline_seconds
        return most if request.deadline_seconds is None else min(request.deadline_seconds, most)

    async def _draw(self, request: DrawRequest, watch: Watch | None) -> Drawn:
        started = time.monotonic()
        self._check_size(request.size)
        table = sampler_table(self.base, request.sampler, request.steps)
        choice = await self._chooser.choose(request.lineage, request.version)
        model, digest = self._names(choice)
        rows = 2 if request.guidance > 1 else 1  # as in diffusers, less is no guidance
        places = Places(len(request.seeds), request.steps, rows, request.person)
        left = max(0.0, self._seconds(request) - (time.monotonic() - started))
        with self._chooser.counted(choice), self._held(choice), self.engine.places(places, seconds=left):
            with span("denoiser.condition"):
                kv_RLK = await run_in(self._conditioning, lambda: self._condition(request, choice.slot))
            noises = map(self._noise, request.seeds)
            drawings = [Drawing(table, kv_RLK, request.guidance, noise, request.person) for noise in noises]
            if watch:
                watch.attach(drawings, model)
            with span("denoiser.draw", model=model, steps=request.steps, n=len(drawings)) as told:
                pictures = await self._pictures(drawings, places)
                told.update(_timings(started, drawings))
        return Drawn(pictures, model, digest, _timings(started, drawings))

    async def _pictures(self, drawings: Sequence[Drawing], places: Places) -> list[Picture]:
        """What comes of some drawings. If one fails or nobody waits any more, the others leave the batch."""
        self.engine.submit(drawings, places)
        try:
            pictures = await asyncio.gather(*(asyncio.wrap_future(drawing.picture) for drawing in drawings))
        finally:
            for drawing in drawings:
                drawing.picture.cancel()
        return [picture.numpy() for picture in pictures]

    async def _classify(self, request: ClassifyRequest) -> Classified:
        started = time.monotonic()
        choice = await self._chooser.choose(request.lineage, request.version)
        slot = choice.slot
        if slot is None:
            raise InputError("model: the base has no concepts; name a lineage.", param="model")
        work = partial(classify_picture, self.base, self._prompts, slot, request.picture, trials=request.trials)
        with self._held(choice), span("denoiser.classify", trials=request.trials, model=slot.model):
            found = await self._classifying.run(lambda check: work(check=check), person=request.person)
        return Classified(found, slot.model, slot.digest, {"total": round(time.monotonic() - started, 4)})

    def _names(self, choice: Choice) -> tuple[str, str]:
        """Model and digest that an answer says."""
        return (choice.slot.model, choice.slot.digest) if choice.slot else (BASE, self.base.ref.revision)

    def _held(self, choice: Choice) -> AbstractContextManager[object]:
        """Keep a request's version in memory."""
        return self.bank.hold(choice.slot) if choice.slot else nullcontext()

    def _condition(self, request: DrawRequest, slot: Slot | None) -> torch.Tensor:
        prompt = self._prompts(request.prompt, slot)
        if request.guidance <= 1:
            return prompt
        return torch.cat([self._prompts(request.negative_prompt, slot, param="negative_prompt"), prompt])

    def _noise(self, seed: int) -> torch.Tensor:
        """What diffusers' pipeline starts from with a generator of this seed on the CPU."""
        side = int(self.base.unet.config.sample_size)
        shape = (1, self.base.latent_channels, side, side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))[0].to(self.base.device)

    def _check_size(self, size: str) -> None:
        own = f"{self.base.image_size}x{self.base.image_size}"
        if size not in ("auto", own):
            raise InputError(f"size: this base draws {own} (or auto), not {size!r}.", param="size")


def _engine(base: BaseModel, settings: Settings, metrics: Metrics) -> Engine:
    """The engine as the settings want it."""
    return Engine(
        base,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_bytes=settings.request_bytes,
        unet=prepare_unet(base, precision=settings.precision, compile_mode=settings.compile_unet),
        buckets=buckets_of(settings.max_batch, settings.compile_unet),
        metrics=metrics,
    )


def _timings(started: float, drawings: Sequence[Drawing]) -> dict[str, float]:
    """Seconds until the request was conditioned, until its first step, from there on, and in all."""
    submitted, first = drawings[0].submitted, min(drawing.started for drawing in drawings)
    now = time.monotonic()
    seconds = {
        "condition": submitted - started,
        "queue": first - submitted,
        "draw": now - first,
        "total": now - started,
    }
    return {name: round(value, 4) for name, value in seconds.items()}
