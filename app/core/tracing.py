"""Traces by OpenTelemetry, for processes that are told where to send them; others import nothing of it.

`OTEL_EXPORTER_OTLP_ENDPOINT` switches them on, and OpenTelemetry's other variables apply, too:
https://opentelemetry.io/docs/languages/sdk-configuration/otlp-exporter/
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger("toque.tracing")

Attributes: TypeAlias = Mapping[str, str | int | float | bool]

_tracer: Tracer | None = None


def traces_endpoint() -> str | None:
    """Return the URL that traces are sent to, or None if there are none."""
    own = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    shared = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return own or (f"{shared.rstrip('/')}/v1/traces" if shared else None)


@contextmanager
def tracing(service: str) -> Generator[None]:
    """Trace what happens in a `with` block, if it is known where to send that.

    Args:
        service: the name of this process in traces, unless `OTEL_SERVICE_NAME` is set.
    """
    global _tracer  # noqa: PLW0603 - one for a process, as loggers are
    endpoint = traces_endpoint()
    if endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("traces are wanted, but OpenTelemetry is not installed: install requirements/otel.txt")
        yield
        return
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or service})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    _tracer = provider.get_tracer("toque")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


def is_tracing() -> bool:
    """Whether spans are recorded."""
    return _tracer is not None


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Literal["INTERNAL", "SERVER"] = "INTERNAL",
    parent: Mapping[str, str] | None = None,
) -> Generator[Span | None]:
    """Record what a `with` block does; yields None if nothing is recorded.

    Args:
        name: what is done.
        attributes: what else is known of it.
        kind: `SERVER` for the answer to a request from elsewhere.
        parent: W3C's headers of the span that it belongs to, if that is another process's. Headers that are
            not valid begin a new trace.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - an extra

    context = None if parent is None else _propagator().extract(parent)
    with _tracer.start_as_current_span(name, context, SpanKind[kind], attributes) as started:
        yield started


def record_span(name: str, since: int, attributes: Attributes) -> None:
    """Record what has ended just now and began at `since`, in nanoseconds since the epoch."""
    if _tracer is not None:
        _tracer.start_span(name, attributes=attributes, start_time=since).end()


def trace_headers() -> dict[str, str]:
    """Return W3C's headers that let another process go on with this trace; none if nothing is recorded.

    https://www.w3.org/TR/trace-context/
    """
    headers: dict[str, str] = {}
    if _tracer is not None:
        _propagator().inject(headers)
    return headers


def trace_id() -> str | None:
    """Return the id of this trace, in 32 hexadecimal digits; None if nothing is recorded."""
    parts = trace_headers().get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else None


def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator()
