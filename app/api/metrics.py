"""Prometheus metrics of one API process, and of the deployment as the database sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app.fine_tuning.models import Worker
from app.fine_tuning.worker_registry import is_alive


class Metrics:
    """The metrics of one app, in a registry of their own so that a process may have several apps."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "toque_http_requests",
            "Requests by route and status",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "toque_http_request_seconds",
            "Time to the end of the response",
            ["method", "route"],
            registry=self._registry,
        )
        self._jobs = Gauge("toque_jobs", "Fine-tuning jobs by status", ["status"], registry=self._registry)
        self._batches = Gauge("toque_batches", "Batches by status", ["status"], registry=self._registry)
        self._workers = Gauge("toque_workers", "Workers with a recent heartbeat", registry=self._registry)
        self._worker_info = Gauge(
            "toque_worker_info",
            "1 for each worker that reported itself within a day",
            ["worker", "hostname", "device", "version", "job"],
            registry=self._registry,
        )
        self._worker_memory = Gauge(
            "toque_worker_memory_bytes",
            "Resident memory of a worker and its trainer",
            ["worker"],
            registry=self._registry,
        )
        self._worker_age = Gauge(
            "toque_worker_heartbeat_age_seconds",
            "Since a worker last reported itself",
            ["worker"],
            registry=self._registry,
        )
        self._engines = Gauge(
            "toque_engines", "Engines ready to answer", ["base_model"], registry=self._registry
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def exposition(
        self,
        jobs: Mapping[str, int],
        batches: Mapping[str, int],
        workers: Sequence[tuple[Worker, float]],
        heartbeat_seconds: float,
        engines: Mapping[str, int],
    ) -> bytes:
        """Return all metrics in Prometheus's text format; those of the deployment are given.

        `workers` are all that there are, each with the age of its last heartbeat in seconds.
        """
        for gauge, counts in ((self._jobs, jobs), (self._batches, batches)):
            gauge.clear()
            for status, count in counts.items():
                gauge.labels(status).set(count)
        self._workers.set(sum(is_alive(age, heartbeat_seconds) for _, age in workers))
        for gauge in (self._worker_info, self._worker_memory, self._worker_age):
            gauge.clear()
        for worker, age in workers:
            self._worker_info.labels(
                worker.id, worker.hostname, worker.device, worker.version, worker.job_id or ""
            ).set(1)
            self._worker_memory.labels(worker.id).set(worker.memory_bytes)
            self._worker_age.labels(worker.id).set(age)
        self._engines.clear()
        for base_model, count in engines.items():
            self._engines.labels(base_model).set(count)
        return generate_latest(self._registry)
