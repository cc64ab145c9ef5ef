"""OpenTelemetry: one span a request, with its queueing, prefill and decoding below it. Needs the extra ``otel``.

Made when a request has ended, out of the times that it carries anyway: nothing is added to a step. Where spans go is
said by OpenTelemetry's own environment variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, …).
Attributes follow the semantic conventions for generative AI: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..engine.outputs import RequestOutput
    from .jobs import RequestEnded
    from .service import Service

_PHASES = (("queue", "arrival", "first_scheduled"), ("prefill", "first_scheduled", "first_token"),
           ("decode", "first_token", "finished"))  # fmt: skip


def tracer_provider() -> Any:
    """A provider that exports over OTLP/HTTP in the background. Raises ConfigError where the extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError("--otel needs the extra: pip install 'pagoda-llm[otel]'") from error
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # nobody said what this is
        resource = resource.merge(Resource({"service.name": "pagoda"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def trace_requests(service: Service, provider: Any) -> None:
    """A span for every request that ends."""
    from opentelemetry.trace import Status, StatusCode, set_span_in_context

    from .jobs import RequestEnded

    tracer = provider.get_tracer("pagoda.server")
    model = service.names[0]

    def on_ended(ended: RequestEnded) -> None:
        wall = _Wall(service.now())
        span = tracer.start_span(
            f"{ended.endpoint} {model}", start_time=wall.ns(ended.arrival), attributes=_attributes(ended, model)
        )
        if ended.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        context = set_span_in_context(span)
        for output in ended.outputs:
            for name, start, end in _PHASES:
                since, until = getattr(output.timing, start), getattr(output.timing, end)
                if since is not None and until is not None:
                    tracer.start_span(name, context=context, start_time=wall.ns(since)).end(wall.ns(until))
        span.end(wall.ns(ended.ended))

    service.events.subscribe(RequestEnded, on_ended)


class _Wall:
    """From the engine's clock to nanoseconds since 1970."""

    def __init__(self, now: float) -> None:
        self._offset_ns = time.time_ns() - int(now * 1e9)

    def ns(self, seconds: float) -> int:
        return self._offset_ns + int(seconds * 1e9)


def _attributes(ended: RequestEnded, model: str) -> dict[str, Any]:
    outputs = ended.outputs
    return {
        "gen_ai.system": "pagoda",
        "gen_ai.operation.name": ended.endpoint,
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": _total(outputs, "prompt_tokens"),
        "gen_ai.usage.output_tokens": _total(outputs, "completion_tokens"),
        "http.response.status_code": ended.status,
        "pagoda.request_id": ended.request_id,
        "pagoda.cached_tokens": _total(outputs, "cached_tokens"),
        "pagoda.kv_bytes_peak": sum(output.memory.peak for output in outputs),
    }


def _total(outputs: tuple[RequestOutput, ...], name: str) -> int:
    return sum(getattr(output.usage, name) for output in outputs)
