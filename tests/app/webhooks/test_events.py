"""Every transition that webhooks tell of writes its event in the same transaction, and no other does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import service as auth_service
from app.auth.caller import Caller
from app.auth.models import Project
from app.batches import queue as batch_queue
from app.batches import service as batches_service
from app.batches.models import Batch
from app.comparisons import queue as comparison_queue
from app.comparisons import service as comparisons_service
from app.comparisons.models import Comparison
from app.context import Context
from app.core.database import Database
from app.core.lease import Lease, LeaseLostError
from app.core.settings import Settings
from app.fine_tuning import queue as job_queue
from app.fine_tuning import service as jobs_service
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter
from app.models.aliases import service as aliases_service
from app.models.aliases.service import Move
from app.storage import open_storage
from app.webhooks.events import EVENT_TYPES, sample_data
from app.webhooks.models import WebhookDelivery, WebhookEndpoint
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL

ADAPTER = f"ft:{BASE_MODEL}:t::1"
SCORE = {"question": 0, "candidate": 0, "score": 1.0, "error": None}


@pytest.fixture
def rows(database: Database) -> Database:
    """A project with a job, a batch, a comparison and an adapter, and an endpoint that wants everything.

    Another project has an endpoint, too.
    """
    with database.writer() as session:
        add_job(session)
        session.get_one(FineTuningJob, "ftjob-t").status = "queued"
        session.add(
            Batch(id="batch_t", project_id="proj_t", endpoint="/v1", input_file_id="file-t", expires_at=9e9)
        )
        comparison = {"model": BASE_MODEL, "file_id": "file-t", "plan": {}, "excluded": [], "total": 1}
        session.add(Comparison(id="cmp_t", project_id="proj_t", status="queued", **comparison))
        session.add(Adapter(name=ADAPTER, project_id="proj_t", base_model=BASE_MODEL, storage_key="none"))
        other = session.scalars(select(Project.id).where(Project.name == "other")).one()
        for project_id in ("proj_t", other):
            add_endpoint(session, project_id, list(EVENT_TYPES))
    return database


def add_endpoint(session: Session, project_id: str, event_types: list[str]) -> WebhookEndpoint:
    endpoint = WebhookEndpoint(
        project_id=project_id,
        name="e",
        url="https://x.example/",
        event_types=event_types,
        secret="whsec_AA==",
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def written(database: Database) -> list[tuple[str, dict[str, Any]]]:
    with database.reader() as session:
        found = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq)).all()
    assert {each.project_id for each in found} <= {"proj_t"}
    return [(each.event_type, each.data) for each in found]


def claim_job(session: Session) -> Lease:
    job = claim_next(session, "w", [BASE_MODEL], 60, spec_version=99)
    assert job is not None
    return job_queue.LEASES.lease_of(job)


def claim_batch(session: Session) -> Lease:
    batch = batch_queue.VALIDATION.claim_next(session, 60)
    assert batch is not None
    return batch_queue.LEASES.lease_of(batch)


def claim_comparison(session: Session) -> Lease:
    comparison = comparison_queue.claim_next(session, 60)
    assert comparison is not None
    return comparison_queue.LEASES.lease_of(comparison)


def _succeed(session: Session) -> None:
    result: dict[str, Any] = {"fine_tuned_model": ADAPTER, "trained_tokens": 1, "result_file_id": "file-t"}
    job_queue.succeed(session, claim_job(session), **result)


def _end_batch(status: str) -> Callable[[Session], None]:
    return lambda session: batch_queue.end(session, claim_batch(session), status)


def _cancel_twice(cancel: Callable[[Session, str, str], object], row_id: str) -> Callable[[Session], None]:
    def both(session: Session) -> None:
        for _ in range(2):
            cancel(session, "proj_t", row_id)
            session.flush()

    return both


def _quarantine(session: Session) -> None:
    assert adapters_service.quarantine(session, ADAPTER, "NaN")
    assert not adapters_service.quarantine(session, ADAPTER, "NaN again")


TRANSITIONS: list[tuple[Callable[[Session], object], str, dict[str, Any]]] = [
    (_succeed, "fine_tuning.job.succeeded", {"id": "ftjob-t"}),
    (
        lambda session: job_queue.fail(session, claim_job(session), code="c", message="m", param=None),
        "fine_tuning.job.failed",
        {"id": "ftjob-t"},
    ),
    (_cancel_twice(jobs_service.cancel_job, "ftjob-t"), "fine_tuning.job.cancelled", {"id": "ftjob-t"}),
    (lambda session: batch_queue.fail(session, claim_batch(session), []), "batch.failed", {"id": "batch_t"}),
    (_end_batch("completed"), "batch.completed", {"id": "batch_t"}),
    (_end_batch("expired"), "batch.expired", {"id": "batch_t"}),
    (_end_batch("cancelled"), "batch.cancelled", {"id": "batch_t"}),
    (
        lambda session: comparison_queue.succeed(session, claim_comparison(session), {}, [SCORE]),
        "comparison.completed",
        {"id": "cmp_t"},
    ),
    (
        lambda session: comparison_queue.fail(session, claim_comparison(session), code="c", message="m"),
        "comparison.failed",
        {"id": "cmp_t"},
    ),
    (
        _cancel_twice(comparisons_service.cancel_comparison, "cmp_t"),
        "comparison.cancelled",
        {"id": "cmp_t"},
    ),
    (_quarantine, "model.quarantined", {"id": ADAPTER, "reason": "NaN"}),
]


@pytest.mark.parametrize(
    ("transition", "event_type", "data"), TRANSITIONS, ids=[each[1] for each in TRANSITIONS]
)
def test_a_transition_and_its_event_are_one(
    rows: Database, transition: Callable[[Session], object], event_type: str, data: dict[str, Any]
) -> None:
    with pytest.raises(ZeroDivisionError), rows.writer() as session:
        transition(session)
        _ = 1 / 0
    assert written(rows) == []
    with rows.writer() as session:
        transition(session)
    assert written(rows) == [(event_type, data)]
    assert sample_data(event_type).keys() == data.keys()  # pyright: ignore[reportArgumentType]


def test_every_move_of_an_alias(rows: Database, settings: Settings) -> None:
    with rows.writer() as session:
        key, _ = auth_service.create_key(session, "proj_t", "t")
    context = Context("proj_t", settings, open_storage(settings), Caller("proj_t", key.id, "project"))
    with rows.writer() as session:
        share: Any = {"model": BASE_MODEL, "weight": 1.0}
        aliases_service.point(session, context, "chat", None, Move("set", [share]))
    with rows.writer() as session:
        aliases_service.delete_alias(session, context, "chat", None)
    moved = [
        {"id": "chat", "version": version, "kind": kind} for version, kind in ((1, "created"), (2, "deleted"))
    ]
    assert written(rows) == [("alias.moved", data) for data in moved]
    assert sample_data("alias.moved").keys() == moved[0].keys()


@pytest.mark.one_database
def test_a_worker_that_has_lost_its_lease_tells_nobody(rows: Database) -> None:
    with rows.writer() as session:
        lease = claim_job(session)
        job_queue.release(session, lease)
    with pytest.raises(LeaseLostError), rows.writer() as session:
        job_queue.fail(session, lease, code="c", message="m", param=None)
    assert written(rows) == []


@pytest.mark.one_database
def test_cancelling_a_batch_tells_once_it_has_ended(rows: Database) -> None:
    with rows.writer() as session:
        batches_service.cancel_batch(session, "proj_t", "batch_t")
    assert written(rows) == []


@pytest.mark.one_database
def test_only_endpoints_that_want_it_and_are_enabled(rows: Database) -> None:
    with rows.writer() as session:
        for endpoint in session.scalars(select(WebhookEndpoint)):
            endpoint.enabled = False
        wanting = add_endpoint(session, "proj_t", ["batch.failed", "batch.expired"])
        add_endpoint(session, "proj_t", ["batch.completed"])
    with rows.writer() as session:
        batch_queue.end(session, claim_batch(session), "expired")
    with rows.reader() as session:
        [delivery] = session.scalars(select(WebhookDelivery))
    assert delivery.endpoint_id == wanting.id
