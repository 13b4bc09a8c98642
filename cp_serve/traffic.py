"""What the ingress counts, in Prometheus' terms. Nothing in a label comes from a client but the method it called."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Traffic:
    """Counters of one process of the ingress."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("palimpsest_http_requests", "Answered requests.", labels, registry=self._registry)
        self._seconds = Histogram(
            "palimpsest_http_seconds",
            "Seconds until a request was answered, a stream until its end.",
            labels[:2],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.streams = Gauge("palimpsest_http_streams", "Streams that are open.", registry=self._registry)
        self.retries = Counter(
            "palimpsest_http_retries", "Calls repeated because a replica had died.", registry=self._registry
        )
        self.silent = Gauge(
            "palimpsest_http_silent_replicas",
            "Replicas that said nothing when all were last asked for something.",
            registry=self._registry,
        )
        self.hints = Counter(
            "palimpsest_http_hints", "Webhooks of the registry that were heeded.", registry=self._registry
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answered request."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """All of it, for an exposition."""
        return self._registry.collect()
