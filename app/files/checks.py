"""The queue of files to check: how a process of the API gets one, keeps it, and records what it found.

As with jobs, a lease raises the check's `epoch`, and a write that names an older one changes nothing: a
process that was frozen or killed loses no file, and none is reported twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Update, or_, select, update
from sqlalchemy.orm import Session

from app.core.database import database_now
from app.datasets.report import Report, sentence
from app.files.models import File, FileCheck

MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """A file that is ours to check, until the lease passes."""

    file_id: str
    epoch: int
    storage_key: str


def add(session: Session, file_id: str) -> None:
    """A file that waits to be checked."""
    session.add(FileCheck(file_id=file_id))
    session.flush()


def claim_next(session: Session, lease_seconds: float, *, max_bytes: int | None = None) -> Claim | None:
    """Leases the file that waits longest; None when there is none. One that failed too often is given up."""
    is_free = or_(FileCheck.lease_until.is_(None), FileCheck.lease_until <= database_now())
    waiting = (
        select(FileCheck, File)
        .join(File, File.id == FileCheck.file_id)
        .where(FileCheck.finished_at.is_(None), is_free)
        .order_by(File.created_at, File.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=FileCheck)
        .execution_options(populate_existing=True)
    )
    if max_bytes is not None:
        waiting = waiting.where(File.bytes <= max_bytes)
    while (found := session.execute(waiting).first()) is not None:
        check, file = found
        if check.attempts >= MAX_ATTEMPTS:
            _give_up(check, file)
            session.flush()
            continue
        check.epoch += 1
        check.attempts += 1
        check.lease_until = database_now() + lease_seconds  # pyright: ignore[reportAttributeAccessIssue]
        session.flush()
        return Claim(file.id, check.epoch, file.storage_key)
    return None


def any_waits(session: Session) -> bool:
    """Whether a file waits, or is being checked."""
    return (
        session.scalar(select(FileCheck.file_id).where(FileCheck.finished_at.is_(None)).limit(1)) is not None
    )


def renew(session: Session, claim: Claim, lease_seconds: float) -> bool:
    """The heartbeat; False where the check is another's by now."""
    return _write(session, _fenced(claim).values(lease_until=database_now() + lease_seconds))


def release(session: Session, claim: Claim, wait_seconds: float = 0.0) -> None:
    """Gives the check back, for another process or a later time; the attempt does not count."""
    freed = _fenced(claim).values(lease_until=database_now() + wait_seconds, attempts=FileCheck.attempts - 1)
    _write(session, freed)


def finish(session: Session, claim: Claim, report: Report) -> bool:
    """Records the report and what it means for the file; False where the check is another's by now."""
    done = _fenced(claim).values(report=report.model_dump(), finished_at=time.time(), lease_until=None)
    if not _write(session, done):
        return False
    file = session.get_one(File, claim.file_id)
    first, more = report.first_error, report.errors - 1
    file.status = "processed" if first is None else "error"
    file.status_details = None
    if first is not None:
        file.status_details = sentence(first) + (f" ({more:,} more)" if more else "")
    file.examples = report.counts.examples
    file.longest_line = report.longest_line
    session.flush()
    return True


def report_of(session: Session, file_id: str) -> Report | None:
    """What the file's check found; None until it is done."""
    found = session.scalar(select(FileCheck.report).where(FileCheck.file_id == file_id))
    return Report.model_validate(found) if found is not None else None


def are_done(session: Session, file_ids: Sequence[str]) -> bool:
    """Whether none of these waits to be checked."""
    waiting = select(File.id).where(File.id.in_(file_ids), File.status == "uploaded").limit(1)
    return session.scalar(waiting) is None


def _give_up(check: FileCheck, file: File) -> None:
    check.finished_at, check.lease_until = time.time(), None
    if file.status == "uploaded":
        file.status = "error"
        file.status_details = (
            f"The check died in each of {MAX_ATTEMPTS} attempts; the API's log has the details."
        )


def _fenced(claim: Claim) -> Update:
    return update(FileCheck).where(
        FileCheck.file_id == claim.file_id,
        FileCheck.epoch == claim.epoch,
        FileCheck.finished_at.is_(None),
    )


def _write(session: Session, fenced: Update) -> bool:
    return bool(session.connection().execute(fenced).rowcount)
