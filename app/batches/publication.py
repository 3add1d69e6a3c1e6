"""Publishes what a batch has come to: its output file, its error file, and its final status."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
from sqlalchemy import select

from app.batches import queue
from app.batches.input_file import read_requests
from app.batches.models import Batch, BatchAnswer
from app.batches.output_line import unanswered_line
from app.context import Context
from app.core.database import Database
from app.core.errors import UnavailableError
from app.core.lease import Lease
from app.datasets.lines import UnreadableFileError
from app.files import service as files_service
from app.files.models import File
from app.storage.incoming import IncomingFile

log = logging.getLogger("toque.batches")

_PAGE = 16
"""Answers that are read at once; each may have several megabytes."""


@dataclass(frozen=True, slots=True)
class _Files:
    """The two files of a batch, in the order of its requests."""

    output: IncomingFile
    errors: IncomingFile


def publish(database: Database, context: Context, batch: Batch, lease: Lease) -> None:
    """Write the files, and end the batch in the same transaction that names them.

    A batch with requests that were not answered has been cancelled, or else it is overdue. It ends even if
    its input file cannot be read any more; the requests that were not answered are then not listed.

    Raises:
        LeaseLostError: this process has lost its lease.
        StorageFullError: no space is left.
    """
    is_cancelled = batch.status == "cancelling"
    with ExitStack() as stack:
        files = _Files(*(stack.enter_context(context.storage.incoming()) for _ in range(2)))
        answered = _write_answers(database, batch.id, files)
        is_complete = answered == batch.total  # also if it was never validated: nothing is to be listed
        if not is_complete:
            try:
                _write_unanswered(database, context, batch, files, is_cancelled=is_cancelled)
            except (UnavailableError, UnreadableFileError, msgspec.DecodeError) as error:
                log.warning("%s ends without a list of what was not answered: %s", batch.id, error)
        for file in (files.output, files.errors):
            file.finish()
        status = "cancelled" if is_cancelled else "completed" if is_complete and batch.total else "expired"
        life = batch.output_seconds
        with database.writer() as session:
            queue.LEASES.verify(session, lease)
            kept = {
                name: files_service.keep_file(
                    session,
                    context,
                    file,
                    f"{batch.id}_{suffix}.jsonl",
                    "batch_output",
                    time.time() + life if life is not None else None,
                ).id
                for name, file, suffix in (
                    ("output_file_id", files.output, "output"),
                    ("error_file_id", files.errors, "error"),
                )
                if file.bytes
            }
            queue.end(session, lease, status, **kept)


def _write_answers(database: Database, batch_id: str, files: _Files) -> int:
    """Write the answers, each into one of the files; return their number."""
    count = 0
    for answer in _read_answers(database, batch_id):
        (files.errors if answer.failed else files.output).write(answer.line)
        count += 1
    return count


def _write_unanswered(
    database: Database, context: Context, batch: Batch, files: _Files, *, is_cancelled: bool
) -> None:
    """Write a line into the error file for every request that was not answered."""
    with database.reader() as session:
        file = session.get_one(File, batch.input_file_id)
        answered = set(session.scalars(select(BatchAnswer.number).where(BatchAnswer.batch_id == batch.id)))
    with files_service.content(context.storage, file) as path:
        for request in read_requests(path):
            if request.number not in answered:
                files.errors.write(unanswered_line(request, is_cancelled=is_cancelled))


def _read_answers(database: Database, batch_id: str) -> Iterator[BatchAnswer]:
    last = 0
    while True:
        page = (
            select(BatchAnswer)
            .where(BatchAnswer.batch_id == batch_id, BatchAnswer.number > last)
            .order_by(BatchAnswer.number)
            .limit(_PAGE)
        )
        with database.reader() as session:
            answers = session.scalars(page).all()
        yield from answers
        if len(answers) < _PAGE:
            return
        last = answers[-1].number
