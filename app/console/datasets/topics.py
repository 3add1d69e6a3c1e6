"""What pages about files watch: the newest files of a project, and the check of one."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.events import topic
from app.context import Context
from app.files.models import File, FileCheck

_WATCHED = 50


def _files(session: Session, context: Context, _argument: str) -> str:
    newest = select(File.id, File.status, File.deleted_at).where(File.project_id == context.project_id)
    return repr(
        session.execute(newest.order_by(File.created_at.desc(), File.id.desc()).limit(_WATCHED)).all()
    )


def _file(session: Session, context: Context, file_id: str) -> str:
    found = (
        select(File.status, File.deleted_at, FileCheck.started_at, FileCheck.progress)
        .outerjoin(FileCheck, FileCheck.file_id == File.id)
        .where(File.id == file_id, File.project_id == context.project_id)
    )
    row = session.execute(found).first()
    if row is None:
        return ""
    status, deleted_at, started_at, progress = row
    return repr((status, deleted_at, started_at, progress["bytes_read"] if progress else None))


def register() -> None:
    """Let pages watch these topics."""
    topic("files", _files)
    topic("file", _file)
