"""Spans of requests: one each, its phases as children, times that add up."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the otel extra")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pagoda.server.traces import trace_requests, tracer_provider

from .otlp import collecting


def test_a_request_is_a_span_with_its_phases(serve) -> None:
    server = serve()
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace_requests(server.service, provider)
    before = time.time_ns()
    usage = server.post("/v1/completions", {"prompt": "hi", "max_tokens": 6, "ignore_eos": True}).json()["usage"]
    assert server.post("/v1/completions", {"prompt": "hi", "kv": "nonsense"}).status_code == 400
    spans = {
        span.name: span for span in kept.get_finished_spans() if span.attributes.get("http.response.status_code") != 400
    }
    request = spans["completions lantern"]
    assert request.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 6
    assert before - 10**9 < request.start_time < request.end_time < time.time_ns() + 10**9
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent.span_id == request.context.span_id
        assert request.start_time <= spans[name].start_time <= spans[name].end_time <= request.end_time
    assert spans["prefill"].end_time == spans["decode"].start_time
    refused = [span for span in kept.get_finished_spans() if span.attributes.get("http.response.status_code") == 400]
    assert len(refused) == 1


def test_a_collector_gets_the_spans_over_otlp(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter", reason="needs the otel extra")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        provider = tracer_provider()
        server = serve()
        trace_requests(server.service, provider)
        headers = {"x-request-id": "traced-1"}
        body = {"prompt": "hi", "max_tokens": 4, "ignore_eos": True, "n": 2}
        assert server.post("/v1/completions", body, headers=headers).status_code == 200
        provider.shutdown()
    assert collector.services == {"pagoda"}
    by_name = {span.name: span for span in collector.spans}
    assert set(by_name) == {"completions lantern", "queue", "prefill", "decode"}
    request = by_name["completions lantern"]
    told = {pair.key: pair.value for pair in request.attributes}
    assert told["pagoda.request_id"].string_value == "traced-1"
    assert told["gen_ai.usage.output_tokens"].int_value == 8
    assert all(by_name[name].parent_span_id == request.span_id for name in ("queue", "prefill", "decode"))
    assert by_name["prefill"].end_time_unix_nano == by_name["decode"].start_time_unix_nano
