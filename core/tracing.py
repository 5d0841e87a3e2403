"""Traces for OpenTelemetry: one for each POST, with the fan-out of its events, and each attempt or fetch from an inbox.

Off without OTEL_EXPORTER_OTLP_ENDPOINT: then none of this runs, and the packages of OpenTelemetry aren't needed.  The
trace of an event travels in its row (`events.origin`), so a span's parent is what is stored there.
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "triggers-api"
Kind = Literal["SERVER", "INTERNAL", "CLIENT"]

# The span that requests of this task are sent in: what an endpoint traces is below it.
current_span_id: ContextVar[str | None] = ContextVar("current_span_id", default=None)

_provider: TracerProvider | None = None
_making = threading.Lock()


def is_on() -> bool:
    """Return whether spans are exported."""
    return bool(settings.OTEL_EXPORTER_OTLP_ENDPOINT)


def require_packages() -> None:
    """Raise ImproperlyConfigured if traces are wanted and their packages aren't there."""
    if is_on():
        try:
            _make_provider().shutdown()
        except ImportError as error:
            raise ImproperlyConfigured(
                f"OTEL_EXPORTER_OTLP_ENDPOINT needs the packages of requirements-otel.txt: {error}."
            ) from None


def _make_provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    endpoint = f"{settings.OTEL_EXPORTER_OTLP_ENDPOINT.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def provider() -> TracerProvider:
    """Return the provider of this process's spans, which exports them on a separate thread."""
    global _provider
    with _making:
        if _provider is None:
            _provider = _make_provider()
        return _provider


def start_span(name: str, trace: str | None, kind: Kind, attributes: dict[str, Any], seconds_ago: float = 0.0) -> Span:
    """Return a span that began some seconds ago.  trace: its parent, as an event stores it; None begins a trace."""
    from opentelemetry import trace as api
    from opentelemetry.context import Context

    parent = Context()
    if trace is not None:
        traceparent, _, tracestate = trace.partition(" ")
        _, trace_id, span_id, flags = traceparent.split("-")
        state = api.TraceState.from_header([tracestate]) if tracestate else api.TraceState()
        remote = api.SpanContext(int(trace_id, 16), int(span_id, 16), True, api.TraceFlags(int(flags, 16)), state)
        parent = api.set_span_in_context(api.NonRecordingSpan(remote), parent)
    tracer = provider().get_tracer(SERVICE)
    started = time.time_ns() - int(seconds_ago * 1e9)
    return tracer.start_span(name, parent, api.SpanKind[kind], attributes, start_time=started)


def stored(span: Span, trace: str | None) -> str:
    """Return a span as an event stores it, so that it is the parent of what comes later.

    trace: the one that the span belongs to, whose `tracestate` is kept.
    """
    context = span.get_span_context()
    _, _, tracestate = (trace or "").partition(" ")
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"
    return f"{traceparent} {tracestate}" if tracestate else traceparent


def span_id_of(span: Span) -> str:
    """Return the span's id in hexadecimal."""
    return f"{span.get_span_context().span_id:016x}"


def end_span(span: Span, error: str = "", **attributes: Any) -> None:
    """End a span.  error: why what it stands for failed, if it did."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attributes(attributes)
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end()
