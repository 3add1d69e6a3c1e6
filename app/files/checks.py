"""The queue of files to check: how an API process claims one, and records what it found.

A check is leased (`app.core.lease`) until it is finished or given back. A process that was frozen or killed
loses no file, and no file is reported on twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased

from app.core.database import database_now
from app.core.lease import Lease, LeaseTable
from app.datasets.report import Progress, Report, sentence
from app.files.models import File, FileCheck

MAX_ATTEMPTS = 3
_MOST_GIVEN_UP = 20
"""The most files that one claim gives up."""
IsAwaited = Callable[[Session, str], bool]
"""Says whether anything waits for the check of a file, by its id, whether or not the file was deleted."""
LEASES = LeaseTable(
    FileCheck,
    key=FileCheck.file_id,
    epoch=FileCheck.epoch,
    until=FileCheck.lease_until,
    held=FileCheck.finished_at.is_(None) & FileCheck.lease_until.is_not(None),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A leased check, and where the file's bytes are."""

    lease: Lease
    storage_key: str

    @property
    def file_id(self) -> str:
        """The file that is checked."""
        return self.lease.id


def add(session: Session, file: File) -> None:
    """Queue a file to be checked."""
    session.add(FileCheck(file_id=file.id, project_id=file.project_id))
    session.flush()


def _nobody_awaits(_session: Session, _file_id: str) -> bool:
    return False


def claim_next(
    session: Session,
    lease_seconds: float,
    *,
    max_bytes: int | None = None,
    is_awaited: IsAwaited = _nobody_awaits,
) -> Claim | None:
    """Lease the next check, or return None when there is none.

    Projects take turns: the one whose last check began longest ago comes first. Within a project, files are
    checked in the order in which they came. A file whose check has failed too often is given up, as is one
    that was deleted unless it `is_awaited`, and the next one is claimed; after some of these, the claim comes
    to nothing, so that the transaction of a project that has deleted very many files does not become long.
    """
    earlier = aliased(FileCheck)
    last_start = select(func.coalesce(func.max(earlier.started_at), 0.0))
    turn = last_start.where(earlier.project_id == FileCheck.project_id).scalar_subquery()
    next_file = (
        select(FileCheck.file_id)
        .join(File, File.id == FileCheck.file_id)
        .where(FileCheck.finished_at.is_(None), or_(FileCheck.lease_until.is_(None), LEASES.expired))
        .order_by(turn, File.created_at, File.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=FileCheck)
    )
    if max_bytes is not None:
        next_file = next_file.where(File.bytes <= max_bytes, ~FileCheck.is_large)
    claim = LEASES.claim(next_file, lease_seconds, attempts=FileCheck.attempts + 1, started_at=database_now())
    for _ in range(_MOST_GIVEN_UP):
        check = session.scalar(claim)
        if check is None:
            return None
        lease, file = LEASES.lease_of(check), session.get_one(File, check.file_id)
        if end_unwanted(session, lease, is_awaited):
            continue
        if check.attempts <= MAX_ATTEMPTS:
            return Claim(lease, file.storage_key)
        died = f"The check died in each of {MAX_ATTEMPTS} attempts; the API's log has the details."
        _give_up(session, lease, file, died)
    return None


def end_unwanted(session: Session, lease: Lease, is_awaited: IsAwaited) -> bool:
    """End the check if its file was deleted and nobody waits for it all the same; return whether it ended.

    Raises:
        LeaseLostError: another process has claimed the check.
    """
    file = session.get_one(File, lease.id, populate_existing=True)
    if file.deleted_at is None or is_awaited(session, file.id):
        return False
    _give_up(session, lease, file, "The file was deleted before it was checked.")
    return True


def set_aside(session: Session, lease: Lease) -> None:
    """Give back the check of a file that is too large for whoever claimed it; the attempt does not count.

    Raises:
        LeaseLostError: another process has claimed the check.
    """
    LEASES.release(session, lease, attempts=FileCheck.attempts - 1, is_large=True)


def any_waits(session: Session) -> bool:
    """Whether any file waits to be checked, or is being checked."""
    return (
        session.scalar(select(FileCheck.file_id).where(FileCheck.finished_at.is_(None)).limit(1)) is not None
    )


def release(session: Session, lease: Lease, wait_seconds: float = 0.0) -> None:
    """Give the check back, to be claimed again after `wait_seconds`; the attempt does not count.

    Raises:
        LeaseLostError: another process has claimed the check.
    """
    # The epoch changes, as the row still has a time until which it is not to be claimed.
    LEASES.update(
        session,
        lease,
        lease_until=database_now() + wait_seconds,
        epoch=FileCheck.epoch + 1,
        attempts=FileCheck.attempts - 1,
    )


def tell(session: Session, lease: Lease, progress: Progress) -> None:
    """Record what the check has found so far.

    Raises:
        LeaseLostError: another process has claimed the check.
    """
    LEASES.update(session, lease, progress=progress.model_dump())


def finish(session: Session, lease: Lease, report: Report) -> None:
    """End the check, and record its report and what it means for the file.

    Raises:
        LeaseLostError: another process has claimed the check.
    """
    LEASES.release(session, lease, report=report.model_dump(), progress=None, finished_at=time.time())
    file = session.get_one(File, lease.id)
    first, more = report.first_error, report.errors - 1
    file.status = "processed" if first is None else "error"
    file.status_details = None
    if first is not None:
        file.status_details = sentence(first) + (f" ({more:,} more)" if more else "")
    file.examples = report.counts.examples
    file.longest_line = report.longest_line
    session.flush()


def report_of(session: Session, file_id: str) -> Report | None:
    """The report of the file's check; None until the check is finished."""
    found = session.scalar(select(FileCheck.report).where(FileCheck.file_id == file_id))
    return Report.model_validate(found) if found is not None else None


def progress_of(session: Session, file_id: str) -> Progress | None:
    """Return what the file's check has found so far; None before it tells, and once it is finished."""
    found = session.scalar(select(FileCheck.progress).where(FileCheck.file_id == file_id))
    return Progress.model_validate(found) if found is not None else None


def are_done(session: Session, file_ids: Sequence[str]) -> bool:
    """Whether all of these files have been checked."""
    waiting = select(File.id).where(File.id.in_(file_ids), File.status == "uploaded").limit(1)
    return session.scalar(waiting) is None


def _give_up(session: Session, lease: Lease, file: File, reason: str) -> None:
    LEASES.release(session, lease, progress=None, finished_at=time.time())
    if file.status == "uploaded":
        file.status, file.status_details = "error", reason
    session.flush()
