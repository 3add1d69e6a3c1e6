"""The files that a job trains on: whether they are fit for it, and what its `"auto"` becomes with them."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database
from app.core.errors import InvalidRequestError, ToqueError, UnavailableError
from app.core.settings import BaseModelEntry, Settings
from app.datasets.findings import BASE_MODEL_CODES
from app.datasets.report import MIN_EXAMPLES, Report, sentence
from app.datasets.request_file import line_error, parse_request_line, read_request_file
from app.datasets.types import ExampleError
from app.files import service as files_service
from app.files.checks import report_of
from app.files.models import File
from app.fine_tuning import queue
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import required_spec_version
from app.fine_tuning.models import FineTuningJob
from app.fine_tuning.plan import JobPlan
from app.fine_tuning.quantization import NOTE
from app.fine_tuning.requested_hyperparameters import resolve_hyperparameters
from app.models.adapters.parent import Parent
from app.models.catalogue import Catalogue, chat_template, hidden_size
from app.storage.base import Storage

_TEMPLATE_ALLOWANCE = 256
"""Tokens that a template may add to an example beyond the bytes of its line."""


def find_training_file(session: Session, project_id: str, file_id: str, param: str) -> File:
    """Return the project's file if jobs may train on it.

    Raises:
        NotFoundError: the project has no such file.
        InvalidRequestError: it was uploaded for something else, or has errors.
    """
    file = files_service.get_file(session, project_id, file_id, param=param)
    if file.purpose != "fine-tune":
        raise InvalidRequestError(
            f"The file '{file.id}' has the purpose '{file.purpose}'; upload it with 'fine-tune'.",
            code="invalid_file_purpose",
            param=param,
        )
    _refuse_errors(session, file, param)
    return file


def resolve(
    database: Database, context: Context, plan: JobPlan, *, is_dry_run: bool = False
) -> dict[str, Any]:
    """Return the job's hyperparameters, once its files are checked.

    A dry run lists the examples that the base model cannot learn from, so they are no error here.

    Raises:
        InvalidRequestError: a file is unfit for this job, or a hyperparameter for this file.
        UnavailableError: the storage does not have a file.
    """
    with database.reader() as session:
        for param, file in plan.files.items():
            _refuse_errors(session, file, param)
        reports = {param: report_of(session, file.id) for param, file in plan.files.items()}
    for file in plan.files.values():
        files_service.require_content(context.storage, file)
    require_enough(plan.examples)
    hyperparameters = resolve_hyperparameters(
        dict(plan.hyperparameters),
        examples=plan.examples,
        base=plan.base,
        hidden_size=hidden_size(context.settings, plan.base),
        method=plan.method,
    )
    for param, file in plan.files.items():
        report = reports[param]
        if report is not None:
            _check_format(context.storage, file, report, plan.method, param)
        if is_dry_run:
            continue
        if report is not None:
            _refuse_errors_of_base(report, plan.base, param)
        _check_lengths(context, plan, file, report, hyperparameters["max_length"], param)
    return hyperparameters


def require_enough(examples: int) -> None:
    """Check that there are enough training examples.

    Raises:
        InvalidRequestError: there are too few.
    """
    if examples < MIN_EXAMPLES:
        raise InvalidRequestError(
            f"The training file has {examples} examples; a job needs at least {MIN_EXAMPLES}.",
            code="too_few_examples",
            param="training_file",
        )


def settle(session: Session, job: FineTuningJob, hyperparameters: dict[str, Any]) -> None:
    """Give the job the hyperparameters that `resolve` has returned, and what follows from them."""
    job.hyperparameters = hyperparameters
    inherited = Parent.INHERITED if job.parent else ()
    chosen = {name: value for name, value in hyperparameters.items() if name not in inherited}
    job.spec_version = max(job.spec_version, required_spec_version(chosen))
    if hyperparameters["quantization"] == "nf4":
        queue.add_event(session, job.id, NOTE)


def is_awaited(session: Session, file_id: str) -> bool:
    """Whether a job waits for the check of this file."""
    named = or_(FineTuningJob.training_file_id == file_id, FineTuningJob.validation_file_id == file_id)
    waiting = select(FineTuningJob.id).where(FineTuningJob.status == "validating_files", named).limit(1)
    return session.scalar(waiting) is not None


def admit_waiting(database: Database, storage: Storage, settings: Settings) -> None:
    """Queue the jobs whose files have been checked since, or fail them."""
    with database.reader() as session:
        waiting = select(FineTuningJob).where(FineTuningJob.status == "validating_files")
        jobs = session.scalars(waiting.order_by(FineTuningJob.created_at)).all()
    for job in jobs:
        _admit(database, Context(job.project_id, settings, storage), job)


def _admit(database: Database, context: Context, job: FineTuningJob) -> None:
    hyperparameters: dict[str, Any] = {}
    problem: ToqueError | None = None
    try:
        plan = _plan_of(database, context, job)
        if plan.waits:
            return
        hyperparameters = resolve(database, context, plan)
    except UnavailableError:
        return  # the storage may come back
    except ToqueError as error:
        problem = error
    with database.writer() as session:
        job = session.get_one(FineTuningJob, job.id, with_for_update=True)
        if job.status != "validating_files":
            return  # it was cancelled, or another process has admitted it
        if problem is None:
            job.status = "queued"
            queue.add_event(session, job.id, "Files validated, moving job to queued state")
            settle(session, job, hyperparameters)
        else:
            body = problem.body
            job.status, job.finished_at = "failed", time.time()
            job.error = {"code": "invalid_training_file", "message": body.message, "param": body.param}
            queue.add_event(session, job.id, f"The job failed: {body.message}", level="error")
            queue.announce_end(session, job.id, "failed")


def _plan_of(database: Database, context: Context, job: FineTuningJob) -> JobPlan:
    with database.reader() as session:
        training_file = session.get_one(File, job.training_file_id)
        validation_file = session.get(File, job.validation_file_id) if job.validation_file_id else None
        base = Catalogue.read(session, context.settings).get(job.model)
    return JobPlan(
        base=base,
        parent=None,
        method=job.method,
        hyperparameters=job.hyperparameters,
        training_file=training_file,
        validation_file=validation_file,
        examples=training_file.examples or 0,
    )


def _refuse_errors(session: Session, file: File, param: str) -> None:
    if file.status != "error":
        return
    report = report_of(session, file.id)
    found = report.first_error if report is not None else None
    if found is None:
        raise InvalidRequestError(
            file.status_details or "The file could not be checked.", code="invalid_training_file", param=param
        )
    raise InvalidRequestError(f"{sentence(found)} {found.hint}", code=found.code, param=param)


def _refuse_errors_of_base(report: Report, base: BaseModelEntry, param: str) -> None:
    """Refuse what the check found wrong for this base, except lengths: they depend on `max_length`."""
    if report.base_model != base.name:
        return  # the worker finds them, before it trains
    for found in report.findings:
        if found.code in BASE_MODEL_CODES and found.code != "example_too_long":
            raise InvalidRequestError(f"{sentence(found)} {found.hint}", code=found.code, param=param)


def _check_format(storage: Storage, file: File, report: Report, method: str, param: str) -> None:
    """Refuse the first example that the method does not learn from."""
    if METHODS[method].formats.issuperset(report.counts.formats):
        return
    with files_service.content(storage, file) as path:
        for number, line in read_request_file(path, param=param):
            try:
                METHODS[method].check_format(parse_request_line(number, line, param=param))
            except ExampleError as error:
                raise line_error(number, error, param=param) from None


def _check_lengths(
    context: Context, plan: JobPlan, file: File, report: Report | None, max_length: int, param: str
) -> None:
    """Refuse an example that is longer than `max_length` tokens, since none is cut silently.

    A token is at least one byte, so only lines of that many bytes need to be tokenized; and none, where the
    file was checked with this base model.
    """
    base = plan.base
    longest_safe = max_length - _TEMPLATE_ALLOWANCE
    if (file.longest_line or 0) <= longest_safe:
        return
    lengths = report.token_lengths if report is not None and report.base_model == base.name else None
    if (
        report is not None
        and lengths is not None
        and lengths.max <= max_length
        and not any(found.severity == "error" for found in report.finding_counts)
    ):
        return
    template = chat_template(context.settings, base)
    if template is None:
        return  # prepared on the worker's machine only, which checks every example before it trains
    with files_service.content(context.storage, file) as path:
        for number, line in read_request_file(path, param=param):
            if len(line) <= longest_safe:
                continue
            try:
                parts = METHODS[plan.method].tokenize(template, parse_request_line(number, line, param=param))
            except ExampleError as error:
                raise line_error(number, error, param=param) from None
            tokens = max(len(part.input_ids) for part in parts)
            if tokens > max_length:
                raise _too_long(number, tokens, max_length, base, param)


def _too_long(
    number: int, tokens: int, max_length: int, base: BaseModelEntry, param: str
) -> InvalidRequestError:
    return InvalidRequestError(
        f"Line {number} has {tokens:,} tokens; at most {max_length:,} fit. "
        "Shorten or split the example, or raise 'max_length' up to the base model's context "
        f"of {base.context:,}.",
        code="example_too_long",
        param=param,
    )
