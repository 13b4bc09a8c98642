"""Keys and values of prompts, computed once per version and prompt, and kept for those that come again.

The cache is bounded in bytes and knows no prompt: what it is searched by is a hash keyed with a secret of this process.
"""

import secrets
import threading
from collections.abc import Set
from hashlib import blake2b

from torch import Tensor

from cp_serve.bank import Slot
from cp_serve.metrics import Metrics
from services.base_model import BaseModel
from services.conditioning import condition


class Prompts:
    """Prompt + version -> kv_1LK. Safe to use from many threads.

    Args:
        base: encodes the prompts.
        max_bytes: memory for what is kept; the least recently used goes first.
        metrics: where to count.
    """

    def __init__(self, base: BaseModel, *, max_bytes: int, metrics: Metrics | None = None) -> None:
        self._base, self._max_bytes, self._metrics = base, max_bytes, metrics or Metrics()
        self._secret = secrets.token_bytes(32)
        self._encoder = threading.Lock()  # it takes one prompt at a time
        self._lock = threading.Lock()  # guards the next two
        self._kept: dict[bytes, tuple[str, Tensor]] = {}  # least recently used first; of which version, and K and V
        self._bytes = 0

    def __call__(self, prompt: str, slot: Slot | None, *, param: str = "prompt") -> Tensor:
        """Keys and values [1, L, K] of a prompt under a version; None is the base.

        Raises:
            InputError: an unknown `<concept>`, or more tokens than the text encoder takes.
        """
        key = self._key(prompt, slot)
        with self._lock:
            if (kept := self._kept.pop(key, None)) is not None:
                self._kept[key] = kept
                self._metrics.prompt_hits.inc()
                return kept[1]
        self._metrics.prompt_misses.inc()
        with self._encoder:
            kv = condition(self._base, [prompt], slot.adapter if slot else None, param=param)
        kv = kv.to(self._base.unet.dtype)
        self._keep(key, slot.model if slot else "", kv)
        return kv

    def forget(self, deleted: Set[tuple[str, int]]) -> None:
        """Drop what was computed with versions, (lineage, number), that were deleted for good."""
        models = {f"{lineage}@{number}" for lineage, number in deleted}
        with self._lock:
            for key in [key for key, (model, _) in self._kept.items() if model in models]:
                self._bytes -= self._kept.pop(key)[1].nbytes

    def _key(self, prompt: str, slot: Slot | None) -> bytes:
        text = f"{slot.digest if slot else ''}\0{prompt}".encode()
        return blake2b(text, key=self._secret).digest()

    def _keep(self, key: bytes, model: str, kv: Tensor) -> None:
        with self._lock:
            if key in self._kept or kv.nbytes > self._max_bytes:
                return
            self._kept[key] = model, kv
            self._bytes += kv.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.pop(next(iter(self._kept)))[1].nbytes
