"""The hold-out that a job's request asks for: chosen and written first, then kept with the job."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from app.context import Context
from app.core.child_process import in_child
from app.core.database import Database
from app.core.errors import InvalidRequestError, UnavailableError
from app.datasets.report import MIN_EXAMPLES
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning import training_files
from app.fine_tuning.hold_out.split import Choice, IncomingSplit, choose, filenames, write_split
from app.fine_tuning.models import FineTuningJob
from app.fine_tuning.schemas import AUTO_SPLIT, CreateJob, SplitRequest
from app.quotas.stored_bytes import require_bytes


def choose_split(database: Database, context: Context, request: CreateJob) -> tuple[File, Choice] | None:
    """Return which examples the request's hold-out takes of which file, or None if it asks for none.

    The file is read whole, in another process and in no transaction.

    Raises:
        InvalidRequestError: the file is too small or has the wrong purpose, or the request also names a
            validation file.
        NotFoundError: the file does not exist.
        UnavailableError: the storage does not have it, or it is still being checked.
    """
    wanted = request.validation_split
    if request.validation_file == AUTO_SPLIT:
        wanted = wanted or SplitRequest()
    elif request.validation_file is not None and wanted is not None:
        raise InvalidRequestError(
            "'validation_split' makes a validation file of the training file: set 'validation_file' to "
            "\"auto\", or leave 'validation_split' out.",
            code="invalid_value",
            param="validation_split",
        )
    if wanted is None:
        return None
    with database.reader() as session:
        file = training_files.find_training_file(
            session, context.project_id, request.training_file, "training_file"
        )
    _require_checked(file)
    with files_service.content(context.storage, file) as path:
        return file, in_child(choose, path, wanted, MIN_EXAMPLES)


@contextmanager
def made_split(database: Database, context: Context, request: CreateJob) -> Generator[IncomingSplit | None]:
    """Write the hold-out that the request asks for, ready for `keep_split`; None if it asks for none.

    Raises:
        InvalidRequestError: as `choose_split`.
        NotFoundError: as `choose_split`.
        UnavailableError: as `choose_split`.
    """
    chosen = choose_split(database, context, request)
    if chosen is None:
        yield None
        return
    with write_split(context.storage, *chosen) as split:
        yield split


def keep_split(
    session: Session, context: Context, file: File, split: IncomingSplit, job: FineTuningJob
) -> None:
    """Make files of both parts, and name them on the job.

    Raises:
        QuotaExceededError: the project stores too much.
    """
    size = split.rest.incoming.bytes + split.held_out.incoming.bytes
    require_bytes(session, context.project_id, size, "validation_split")
    rest, held_out = (
        files_service.keep_file(session, context, part.incoming, filename, file.purpose)
        for part, filename in zip((split.rest, split.held_out), filenames(file.filename), strict=True)
    )
    job.rest_file_id, job.validation_file_id = rest.id, held_out.id
    job.validation_split = split.choice.request.model_dump() | {
        "examples": split.rest.examples,
        "held_out": split.held_out.examples,
    }


def _require_checked(file: File) -> None:
    if file.status == "uploaded":
        raise UnavailableError(
            f"The file '{file.id}' is still being checked; ask again in a moment.", code="file_not_checked"
        )
