"""Reads the audit log. Nothing here, or anywhere, changes what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit.models import AuditLog
from app.audit.schemas import AuditLogQuery
from app.core.pagination import fetch_page

_READ_AT_ONCE = 500


def list_logs(session: Session, query: AuditLogQuery) -> tuple[Sequence[AuditLog], bool]:
    """Return a page of the changes of all projects, newest first, and whether more follow."""
    found = select(AuditLog)
    for column, values in (
        (AuditLog.project_id, query.project_ids),
        (AuditLog.type, query.event_types),
        (AuditLog.actor_id, query.actor_ids),
        (AuditLog.resource_id, query.resource_ids),
    ):
        if values:
            found = found.where(column.in_(values))
    # Times are shown in whole seconds, and compared as they are shown.
    if query.after_time is not None:
        found = found.where(AuditLog.effective_at >= query.after_time + 1)
    if query.from_time is not None:
        found = found.where(AuditLog.effective_at >= query.from_time)
    if query.before_time is not None:
        found = found.where(AuditLog.effective_at < query.before_time)
    if query.to_time is not None:
        found = found.where(AuditLog.effective_at < query.to_time + 1)
    return fetch_page(
        session, found, (AuditLog.seq,), identity=AuditLog.id, after=query.after, limit=query.limit
    )


def export_logs(session: Session) -> Iterator[AuditLog]:
    """Yield every change, oldest first; while the caller holds them up, no transaction is open."""
    last = 0
    while True:
        page = select(AuditLog).where(AuditLog.seq > last).order_by(AuditLog.seq).limit(_READ_AT_ONCE)
        logs = session.scalars(page).all()
        session.commit()  # nothing; it ends the transaction
        if not logs:
            return
        last = logs[-1].seq
        yield from logs
