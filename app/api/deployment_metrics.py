"""Prometheus metrics of the deployment, as the database has it at this moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import get_args

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import __version__
from app.batches import service as batches_service
from app.batches.models import Batch
from app.batches.schemas import Status as BatchStatus
from app.comparisons.models import Comparison
from app.completions import service as completions_service
from app.core.database import database_now
from app.core.settings import Settings
from app.files.models import File, FileCheck
from app.fine_tuning import service as fine_tuning_service
from app.fine_tuning import worker_registry
from app.fine_tuning.models import ALLOWED_MOVES, FineTuningJob
from app.storage.base import Storage
from app.webhooks.models import WebhookDelivery, WebhookEndpoint

_LEASES: Mapping[str, InstrumentedAttribute[float | None]] = {
    "fine_tuning_job": FineTuningJob.lease_until,
    "batch": Batch.lease_until,
    "comparison": Comparison.lease_until,
    "file_check": FileCheck.lease_until,
    "webhook_endpoint": WebhookEndpoint.lease_until,
}


def collect(session: Session, settings: Settings, storage: Storage) -> list[Metric]:
    """Return the metrics of jobs, batches, workers, webhooks, leases and storage."""
    return [
        _gauge("toque_info", "The version", {__version__: 1}, "version"),
        *_jobs(session),
        *_workers(session, settings.heartbeat_seconds),
        _gauge(
            "toque_engines_needed",
            "Engines that are needed of each base model that was ever asked for",
            completions_service.engines_needed(session, settings),
            "base_model",
        ),
        *_webhooks(session),
        _leases(session),
        *_storage(session, storage),
    ]


def _jobs(session: Session) -> Sequence[Metric]:
    jobs = dict.fromkeys(ALLOWED_MOVES, 0) | fine_tuning_service.count_by_status(session)
    batches = dict.fromkeys(get_args(BatchStatus), 0) | batches_service.count_by_status(session)
    is_queued = FineTuningJob.status == "queued"
    by_gpus = select(FineTuningJob.gpus, func.count()).where(is_queued).group_by(FineTuningJob.gpus)
    queued = {str(gpus): count for gpus, count in session.execute(by_gpus)}
    waiting = _oldest(session, FineTuningJob.created_at, is_queued)
    return [
        _gauge("toque_jobs", "Fine-tuning jobs by status", jobs, "status"),
        _gauge("toque_batches", "Batches by status", batches, "status"),
        _gauge("toque_queued_jobs", "Queued jobs by the GPUs that they ask for", queued, "gpus"),
        _single("toque_job_queue_seconds", "How long the oldest queued job has waited", waiting),
    ]


def _workers(session: Session, heartbeat_seconds: float) -> Sequence[Metric]:
    workers = worker_registry.with_ages(session)
    alive = sum(worker_registry.is_alive(age, heartbeat_seconds) for _, age in workers)
    info = GaugeMetricFamily(
        "toque_worker_info",
        "1 for each worker that reported itself within a day",
        labels=["worker", "hostname", "device", "version"],
    )
    for worker, _ in workers:
        info.add_metric([worker.id, worker.hostname, worker.device, worker.version], 1)
    busy = {worker.id: worker.job_id is not None for worker, _ in workers}
    memory = {worker.id: worker.memory_bytes for worker, _ in workers}
    ages = {worker.id: age for worker, age in workers}
    return [
        _single("toque_workers", "Workers with a recent heartbeat", alive),
        info,
        _gauge("toque_worker_busy", "1 while a worker has a job", busy, "worker"),
        _gauge("toque_worker_memory_bytes", "Resident memory of a worker and its trainer", memory, "worker"),
        _gauge("toque_worker_heartbeat_age_seconds", "Since a worker last reported itself", ages, "worker"),
    ]


def _webhooks(session: Session) -> Sequence[Metric]:
    is_pending = WebhookDelivery.status == "pending"
    pending = session.scalar(select(func.count()).where(is_pending)) or 0
    oldest = _oldest(session, WebhookDelivery.created_at, is_pending)
    return [
        _single("toque_webhook_deliveries_pending", "Webhook deliveries that are still to be made", pending),
        _single("toque_webhook_delivery_age_seconds", "How long the oldest of them has waited", oldest),
    ]


def _leases(session: Session) -> Metric:
    leases = GaugeMetricFamily(
        "toque_leases", "Leases that are held, or expired without another claim", labels=["resource", "state"]
    )
    for resource, lease_until in _LEASES.items():
        is_held = func.sum(case((lease_until > database_now(), 1), else_=0))
        held, all_of_them = session.execute(
            select(is_held, func.count()).where(lease_until.is_not(None))
        ).one()
        leases.add_metric([resource, "held"], held or 0)
        leases.add_metric([resource, "expired"], all_of_them - (held or 0))
    return leases


def _storage(session: Session, storage: Storage) -> Sequence[Metric]:
    stored = session.scalar(select(func.sum(File.bytes)).where(File.deleted_at.is_(None))) or 0
    metrics = [_single("toque_file_bytes", "Of all files, each as often as it was uploaded", stored)]
    with suppress(OSError):  # the storage is away, which is no reason to show nothing else
        free = storage.free_bytes()
        metrics.append(_single("toque_storage_free_bytes", "The space that is left on the storage", free))
    return metrics


def _oldest(session: Session, time: InstrumentedAttribute[float], *conditions: ColumnElement[bool]) -> float:
    """Return the age of the oldest of these rows in seconds; 0 if there is none."""
    age = session.scalar(select(database_now() - func.min(time)).where(*conditions))
    return max(0.0, float(age or 0.0))


def _single(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _gauge(name: str, meaning: str, values: Mapping[str, float], label: str) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family
