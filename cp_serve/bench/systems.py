"""The systems that are compared. Each answers traffic and says how long every request took."""

import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cp_serve.batch import Drawing
from cp_serve.bench.profile import Profile
from cp_serve.bench.traffic import Traffic, Wish
from cp_serve.engine import Engine
from cp_serve.samplers import sampler_table, scheduler_of
from cp_serve.unet import prepare_unet
from services.adapter import Adapter, TrainingState, encode
from services.base_model import BaseModel, resolve
from services.conditioning import condition
from services.manifest import ADAPTER_FILE

CONCEPT = "thing"
GUIDANCE = 5.0


class System(ABC):
    """One way to serve.

    Attributes:
        together: images that were drawn together, each time.
    """

    together: list[int]

    @abstractmethod
    def serve(self, traffic: Traffic) -> list[float]:
        """Answer all requests; seconds from each one's arrival to its picture."""

    @abstractmethod
    def draw(self, wish: Wish) -> Tensor:
        """One picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """End what was started; nothing, unless a system says otherwise."""
        return


class Plain(System):
    """A diffusers pipeline with every version's LoRA loaded (`set_adapters`), one request at a time.

    Args:
        base, adapters: what draws.
        steps: of every picture.
        reload: load each request's LoRA instead of having all loaded.
    """

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter], *, steps: int, reload: bool = False) -> None:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # that a LoRA has nothing for the text encoder is said at each loading
        self._steps, self._reload = steps, reload
        pipeline = StableDiffusionPipeline.from_pretrained(
            resolve(base.ref.id), dtype=torch.float32, safety_checker=None
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler_of(base, "ddim")
        self._pipeline: Any = pipeline.to(base.device)
        self._files = [_lora(adapter, base) for adapter in adapters]
        self._add_tokens(adapters)
        for version in range(0 if reload else len(adapters)):
            pipeline.load_lora_weights(dict(self._files[version]), adapter_name=f"v{version}")

    def _add_tokens(self, adapters: Sequence[Adapter]) -> None:
        """Every version's concept is a token of its own."""
        tokenizer, encoder = self._pipeline.tokenizer, self._pipeline.text_encoder
        tokenizer.add_tokens([f"<v{version}>" for version in range(len(adapters))])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        rows = encoder.get_input_embeddings().weight.data
        for version, adapter in enumerate(adapters):
            rows[tokenizer.convert_tokens_to_ids(f"<v{version}>")] = adapter.tokens[CONCEPT][0]

    def serve(self, traffic: Traffic) -> list[float]:
        """Answer what came first, alone or with others that go together with it."""
        waiting: list[tuple[float, Wish]] = []
        self.together = []
        seconds, begun = [], time.monotonic()
        while not traffic.finished:
            waiting += traffic.arrived(time.monotonic() - begun)
            if not waiting:
                _sleep_until(begun, traffic.next_at)
                continue
            batch = self.pick(waiting)
            waiting = [entry for entry in waiting if entry not in batch]
            self.draw_batch([wish for _, wish in batch])
            self.together.append(len(batch))
            now = time.monotonic() - begun
            for moment, wish in batch:
                seconds.append(now - moment)
                traffic.answered(wish, now)
        return seconds

    def pick(self, waiting: Sequence[tuple[float, Wish]]) -> list[tuple[float, Wish]]:
        """What is drawn next of what waits."""
        return [waiting[0]]

    def draw(self, wish: Wish) -> Tensor:
        """One picture."""
        return self.draw_batch([wish])[0]

    def draw_batch(self, wishes: Sequence[Wish]) -> list[Tensor]:
        """Pictures of one version."""
        version = wishes[0].version
        if self._reload:
            self._pipeline.unload_lora_weights()
            self._pipeline.load_lora_weights(dict(self._files[version]))
        else:
            self._pipeline.set_adapters(f"v{version}")
        images = self._pipeline(
            [wish.prompt.format(f"<v{version}>") for wish in wishes],
            num_inference_steps=self._steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(wish.seed) for wish in wishes],
            output_type="np",
        ).images
        return [torch.from_numpy((image * 255).round().astype("uint8")) for image in images]


class StaticBatches(Plain):
    """Batches of one version each: those who wait for the version of whoever has waited longest go together."""

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter], *, steps: int, max_batch: int) -> None:
        super().__init__(base, adapters, steps=steps)
        self._max_batch = max_batch

    def pick(self, waiting: Sequence[tuple[float, Wish]]) -> list[tuple[float, Wish]]:
        """What is drawn next of what waits."""
        version = waiting[0][1].version
        return [entry for entry in waiting if entry[1].version == version][: self._max_batch]


class Ours(System):
    """The engine, its U-Net as a replica runs it, with conditioning as a replica does it, in one thread beside it.

    Attributes:
        profile: when which network ran, in the traffic served last.
    """

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter], *, steps: int, max_batch: int) -> None:
        self._base, self._adapters = base, adapters
        self._table = sampler_table(base, "ddim", steps)
        self.profile = Profile(base)
        unet = self.profile.watched(prepare_unet(base))
        self.engine = Engine(base, max_batch=max_batch, max_queue=max_batch * 4, unet=unet)
        self.engine.warm_up()
        # As a replica's cache has it: the negative prompt is the same for all of a version's requests.
        self._negative = [condition(base, [""], adapter) for adapter in adapters]

    def serve(self, traffic: Traffic) -> list[float]:
        """Let everybody join the batch as they come."""
        with self.profile.watching():
            seconds = self._serve(traffic)
        self.together = [rows // 2 for rows in self.profile.rows]
        return seconds

    def _serve(self, traffic: Traffic) -> list[float]:
        done: queue.Queue[tuple[float, Wish, Drawing]] = queue.Queue()
        seconds, begun = [], time.monotonic()
        while not traffic.finished:
            for moment, wish in traffic.arrived(time.monotonic() - begun):
                drawing = self._drawing(wish)
                drawing.picture.add_done_callback(lambda _, entry=(moment, wish, drawing): done.put(entry))  # type: ignore[misc]
                self.engine.submit([drawing])
            try:
                moment, wish, drawing = done.get(timeout=_seconds_until(begun, traffic.next_at))
            except queue.Empty:
                continue
            drawing.picture.result()  # one that failed is no picture
            now = time.monotonic() - begun
            seconds.append(now - moment)
            traffic.answered(wish, now)
        return seconds

    def draw(self, wish: Wish) -> Tensor:
        """One picture."""
        drawing = self._drawing(wish)
        self.engine.submit([drawing])
        return drawing.picture.result()

    def close(self) -> None:
        """End the engine."""
        self.engine.stop()

    def _drawing(self, wish: Wish) -> Drawing:
        prompt = condition(self._base, [wish.prompt.format(f"<{CONCEPT}>")], self._adapters[wish.version])
        side = int(self._base.unet.config.sample_size)
        shape = (1, self._base.latent_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(wish.seed))[0].to(self._base.device)
        kv_RLK = torch.cat([self._negative[wish.version], prompt])
        return Drawing(self._table, kv_RLK, GUIDANCE, noise, person=str(wish.person))


def _lora(adapter: Adapter, base: BaseModel) -> Mapping[str, Tensor]:
    """The LoRA as diffusers loads it."""
    from safetensors.torch import load

    files = encode(adapter, TrainingState(adapter.down_PRD, adapter.up_KR), base.layout)
    tensors: dict[str, Tensor] = load(files[ADAPTER_FILE])
    return tensors


def _seconds_until(begun: float, moment: float | None) -> float | None:
    return None if moment is None else max(0.0, begun + moment - time.monotonic())


def _sleep_until(begun: float, moment: float | None) -> None:
    if (seconds := _seconds_until(begun, moment)) is not None:
        time.sleep(seconds)
