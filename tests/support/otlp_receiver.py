"""A receiver of traces: OTLP over HTTP, as OpenTelemetry's collector speaks it.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Span:
    """A span as it was sent."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    seconds: float
    attributes: dict[str, Any]


class OtlpReceiver:
    """Keeps the spans that it was sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []

    def environment(self) -> dict[str, str]:
        """What makes a process send its traces here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def find(self, name: str, trace_id: str | None = None) -> list[Span]:
        return [each for each in self.spans if each.name == name and trace_id in (None, each.trace_id)]

    def wait_for(self, name: str, trace_id: str | None = None, count: int = 1) -> list[Span]:
        """The spans of that name, once there are as many."""

        def found() -> list[Span] | None:
            spans = self.find(name, trace_id)
            return spans if len(spans) >= count else None

        spans: list[Span] = wait_until(found, f"{count} spans '{name}' among {self.spans}")
        assert len(spans) == count
        return spans

    def take(self, content: bytes) -> None:
        for of_resource in ExportTraceServiceRequest.FromString(content).resource_spans:
            service = _attributes(of_resource.resource)["service.name"]
            for of_scope in of_resource.scope_spans:
                self.spans += [_span(service, each) for each in of_scope.spans]


@contextmanager
def run_receiver() -> Iterator[OtlpReceiver]:
    """Receives traces on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            content = self.rfile.read(int(self.headers["content-length"]))
            is_packed = self.headers.get("content-encoding") == "gzip"
            receiver.take(gzip.decompress(content) if is_packed else content)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = OtlpReceiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def traced(receiver: OtlpReceiver, service: str) -> Iterator[None]:
    """Traces this process, until the block ends."""
    from app.core.tracing import tracing

    with pytest.MonkeyPatch.context() as patch:
        for name, value in receiver.environment().items():
            patch.setenv(name, value)
        with tracing(service):
            yield


def _span(service: str, sent: Any) -> Span:
    return Span(
        service=service,
        name=sent.name,
        trace_id=sent.trace_id.hex(),
        span_id=sent.span_id.hex(),
        parent_id=sent.parent_span_id.hex(),
        seconds=(sent.end_time_unix_nano - sent.start_time_unix_nano) / 1e9,
        attributes=_attributes(sent),
    )


def _attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}
