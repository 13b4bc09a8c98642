"""Where the engine's time goes: when its U-Net is asked, and, by hooks on them, when other networks run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cp_serve.batch import Unet
from services.base_model import BaseModel

_Span = tuple[float, float]


class Profile:
    """When the U-Net (`watched`), the VAE's decoder and the text encoder of a base ran, each once at a time.

    Attributes:
        rows: of the U-Net's batch at each step.
    """

    def __init__(self, base: BaseModel) -> None:
        self._parts: Mapping[str, nn.Module] = {"vae": base.vae.decoder, "text_encoder": base.text_encoder}
        self._spans: dict[str, list[_Span]] = {"unet": []}
        self.rows: list[int] = []

    def watched(self, unet: Unet) -> Unet:
        """The same U-Net, noting when it is asked and for how many rows, on however many threads it runs."""

        def run(x_RCHW: Tensor, t_R: Tensor, kv_RLK: Tensor, guided: int) -> Tensor:
            begun = time.monotonic()
            found = unet(x_RCHW, t_R, kv_RLK, guided)
            self._spans["unet"].append((begun, time.monotonic()))
            self.rows.append(len(x_RCHW))
            return found

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Begin anew, and take note until the end of the `with`."""
        self._spans, self.rows = {name: [] for name in ("unet", *self._parts)}, []
        hooks = [hook for name, part in self._parts.items() for hook in self._hooks(name, part)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seconds(self) -> dict[str, float]:
        """Of each part; they overlap."""
        return {name: sum(end - begin for begin, end in spans) for name, spans in self._spans.items()}

    def covered(self, *parts: str) -> float:
        """Seconds in which at least one of some parts ran."""
        return length_of_union([span for part in parts for span in self._spans[part]])

    def _hooks(self, name: str, part: nn.Module) -> list[Any]:
        begun = [0.0]

        def before(*_: object) -> None:
            begun[0] = time.monotonic()

        def after(*_: object) -> None:
            self._spans[name].append((begun[0], time.monotonic()))

        return [part.register_forward_pre_hook(before), part.register_forward_hook(after)]


def length_of_union(spans: list[_Span]) -> float:
    """Length of what some intervals cover together."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
