"""Prometheus metrics of the requests to one API process.

They are named as OpenTelemetry names them: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app.api.exchange import Exchange

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The metrics of one app, in a registry of their own so that a process may have several apps."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._seconds = Histogram(
            "http_server_request_duration_seconds",
            "Time to the end of the response",
            ["http_request_method", "http_route", "http_response_status_code"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._active = Gauge(
            "http_server_active_requests", "Requests that are being answered", registry=self.registry
        )

    def begin(self) -> None:
        """Count a request as active."""
        self._active.inc()

    def end(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        self._active.dec()
        labels = exchange.scope["method"], exchange.route or "unmatched", exchange.status
        self._seconds.labels(*labels).observe(exchange.seconds)
