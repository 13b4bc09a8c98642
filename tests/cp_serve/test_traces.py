"""A request is one trace, from the client's own span to the denoiser's."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.telemetry import Tracing
from tests.cp_serve.conftest import Serving
from tests.cp_serve.test_http import PATH, PROMPT, SECRET

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
HEADERS = {"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01", "X-Request-Id": "id-7"}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(Tracing, "tracer", provider.get_tracer("test"))
    yield kept
    provider.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = exporter.get_finished_spans()
    assert len({span.name for span in spans}) == len(spans), "each once"
    return {span.name: span for span in spans}


def parents(spans: dict[str, ReadableSpan]) -> dict[str, str]:
    """Who is under whom; all of them in the client's trace."""
    names = {span.context.span_id: name for name, span in spans.items()} | {PARENT: "client"}
    assert {span.context.trace_id for span in spans.values()} == {TRACE}
    return {name: names[span.parent.span_id] for name, span in spans.items() if span.parent}


def test_a_request_is_one_trace(serving: Serving, exporter: InMemorySpanExporter) -> None:
    body = PROMPT | {"prompt": SECRET, "n": 2, "steps": 3}
    assert serving.client.post(PATH, json=body, headers=HEADERS).status_code == 200
    spans = by_name(exporter)
    assert parents(spans) == {
        "http.request": "client",
        "draw": "http.request",
        "denoiser.condition": "draw",
        "denoiser.draw": "draw",
    }
    told = {name: dict(span.attributes or {}) for name, span in spans.items()}
    assert told["http.request"] == {"request_id": "id-7", "http.route": PATH, "http.status_code": 200}
    for name in ("draw", "denoiser.draw"):
        assert told[name].items() >= {"model": "pets@2", "steps": 3, "n": 2}.items()
        assert told[name].keys() >= {"condition", "queue", "draw", "total"}
    assert SECRET not in str(told)


def test_so_is_a_stream(serving: Serving, exporter: InMemorySpanExporter) -> None:
    body = PROMPT | {"steps": 2, "stream": True}
    assert serving.client.post(PATH, json=body, headers=HEADERS).status_code == 200
    assert parents(by_name(exporter)) == {
        "http.request": "client",
        "denoiser.condition": "http.request",
        "denoiser.draw": "http.request",
    }


def test_what_was_refused_says_so_without_its_text(serving: Serving, exporter: InMemorySpanExporter) -> None:
    response = serving.client.post(PATH, json=PROMPT | {"prompt": f"{SECRET} <cat>"}, headers=HEADERS)
    assert response.status_code == 422
    spans = by_name(exporter)
    assert parents(spans).keys() == {"http.request", "draw", "denoiser.condition"}
    assert {name: span.status.description for name, span in spans.items()} == {
        "http.request": None,
        "draw": "InputError",
        "denoiser.condition": "InputError",
    }
    assert not any(span.events for span in spans.values())
