"""What a replica measures, in Prometheus' terms. Labels name lineages, never a person, a prompt or a picture.

Each replica keeps a registry of its own and hands its families over as values: what `ray.util.metrics` exports leaves
on another port of every node, where the HTTP API's own `/metrics` cannot read it.
"""

from collections.abc import Iterable, Sequence
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_STEP_SECONDS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 2, 3, 10, 30, 100)
"""Finer, so that a pause can be told from a step."""


class Metrics:
    """The instruments of one replica; their names begin with `palimpsest_`."""

    def __init__(self) -> None:
        self.replica = uuid4().hex[:8]
        self._registry = CollectorRegistry()
        self.queue = self._seconds("queue_seconds", "From a drawing's arrival to its first step.")
        self.step = self._seconds("step_seconds", "One denoising step of the batch.", _STEP_SECONDS)
        self.pause = self._seconds(
            "pause_seconds", "Between two denoising steps, while there was something to draw.", _STEP_SECONDS
        )
        self.decode = self._seconds("decode_seconds", "One decoding of finished pictures.")
        self.steps = self._counter("steps", "Denoising steps of the batch.")
        self.images = self._counter("batch_images", "Images of each step summed; over steps, the batch's occupancy.")
        self.running = self._gauge("running_images", "Images in the batch.")
        self.waiting = self._gauge("waiting_images", "Images waiting for a place in the batch.")
        self.bank_bytes = self._gauge("bank_bytes", "Memory of the adapter versions held.")
        self.bank_versions = self._gauge("bank_versions", "Adapter versions held.")
        self.swaps = self._counter("swaps", "Moves of a lineage's live pointer.")
        self.swap_age = self._gauge("swap_age_seconds", "Since the last move of a live pointer.")
        self.look_age = self._gauge("look_age_seconds", "Since the registry was last read.")
        self.refused = self._counter(
            "refused_adapters", "Versions that did not stand verification, are another base's, or live and not ours."
        )
        self.requests = self._counter("requests", "Requests that ended.", "lineage", "arm", "outcome")
        self.canary_returns = self._counter("canary_returns", "Canaries that failed here, or that this replica ended.")
        self.prompt_hits = self._counter("prompt_cache_hits", "Prompts whose keys and values were there.")
        self.prompt_misses = self._counter("prompt_cache_misses", "Prompts that were encoded.")

    def _seconds(self, name: str, meaning: str, bounds: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"palimpsest_{name}", meaning, buckets=bounds, registry=self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"palimpsest_{name}", meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"palimpsest_{name}", meaning, registry=self._registry)

    def collect(self) -> list[Metric]:
        """All families, every sample labelled with this replica; they can cross processes."""
        families = list(self._registry.collect())
        for family in families:
            family.samples = [s._replace(labels={**s.labels, "replica": self.replica}) for s in family.samples]
        return families


def merge(pages: Iterable[Sequence[Metric]]) -> list[Metric]:
    """The families of several replicas as one exposition has them: each once, with everybody's samples."""
    merged: dict[str, Metric] = {}
    for family in (family for page in pages for family in page):
        if family.name not in merged:
            merged[family.name] = Metric(family.name, family.documentation, family.type)
        merged[family.name].samples.extend(family.samples)
    return list(merged.values())
