"""Fine-tuning jobs: creating, listing, cancelling, pausing and resuming them."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session, selectinload

from app.context import Context
from app.core.database import Database, advisory_lock
from app.core.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from app.core.idempotency import IdempotentRequest
from app.core.pagination import fetch_page
from app.core.settings import Settings
from app.core.tracing import trace_headers
from app.datasets.report import MIN_EXAMPLES
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning import queue, tracked_runs, training_files, worker_registry
from app.fine_tuning.gpu_hours import record_attempt, require_gpu_hours
from app.fine_tuning.hold_out.service import keep_split, made_split
from app.fine_tuning.hold_out.split import Choice, IncomingSplit
from app.fine_tuning.integrations import require_wandb
from app.fine_tuning.known_base import KnownBase
from app.fine_tuning.methods import DEFAULT_METHOD, METHODS
from app.fine_tuning.models import ALLOWED_MOVES, EXTENDED_SPEC_VERSION, Checkpoint, Event, FineTuningJob
from app.fine_tuning.plan import JobPlan
from app.fine_tuning.quantization import require_packable
from app.fine_tuning.requested_hyperparameters import (
    LoraHyperparameters,
    RequestedHyperparameters,
    resolve_hyperparameters,
)
from app.fine_tuning.schemas import CreateJob, JobObject
from app.models.adapters import service as adapters_service
from app.models.adapters.parent import Parent
from app.models.aliases.resolution import find_model_to_train
from app.models.catalogue import Catalogue


def create_job(
    database: Database, context: Context, creating: IdempotentRequest, request: CreateJob
) -> JobObject:
    """Check everything that can be checked without a GPU, and queue the job.

    While a file is still being checked the job waits in `validating_files` (`training_files.admit_waiting`).

    Raises:
        InvalidRequestError: a parameter or a training example is wrong; nothing is kept.
        NotFoundError: the model or a file does not exist.
        FailedDependencyError: the model to continue from is quarantined or damaged.
        UnavailableError: a hold-out is to be made of a file that is still being checked, or the base model's
            files are damaged.
        QuotaExceededError: too many of the project's jobs are waiting, or its GPU-hours are used up.
    """
    content = request.model_dump(exclude_unset=True)
    with database.writer() as session:
        known = creating.find(session, "fine_tuning.job", content)
        if known is not None:
            return describe_job(session, context.settings, get_job(session, context.project_id, known))
    with made_split(database, context, request) as split:
        plan = plan_job(database, context, request, split.choice if split else None)
        with database.writer() as session:
            job = creating.once(
                session,
                "fine_tuning.job",
                content,
                find=partial(get_job, session, context.project_id),
                create=partial(_create, session, context, request, plan, split),
            )
            return describe_job(session, context.settings, job)


def _create(
    session: Session, context: Context, request: CreateJob, plan: JobPlan, split: IncomingSplit | None
) -> FineTuningJob:
    base, parent = plan.base, plan.parent
    _require_room(session, context)
    require_gpu_hours(session, context.project_id)
    for param, file in plan.files.items():  # one may have been deleted since the plan was made
        files_service.get_file(session, context.project_id, file.id, param=param)
    if parent is not None:
        adapters_service.lock_adapter(session, context, parent.name)
    Catalogue.read_to_rely_on(session, context.settings).get(base.name)  # it may have been removed, too
    job = FineTuningJob(
        project_id=context.project_id,
        status="validating_files" if plan.waits else "queued",
        model=base.name,
        parent=parent.name if parent else None,
        training_file_id=plan.training_file.id,
        validation_file_id=plan.validation_file.id if plan.validation_file else None,
        suffix=request.suffix.replace(" ", "-") if request.suffix else None,
        seed=request.seed if request.seed is not None else secrets.randbelow(2**31),
        method=plan.method,
        hyperparameters=plan.hyperparameters,
        job_metadata=request.metadata,
        integrations=[each.model_dump() for each in request.integrations or ()] or None,
        gpus=plan.gpus,
        rank=-(request.priority or 0),
        traceparent=trace_headers().get("traceparent"),
    )
    if split is not None:
        keep_split(session, context, plan.training_file, split, job)
    job.spec_version = METHODS[plan.method].spec_version
    if split is not None or parent is not None:
        job.spec_version = max(job.spec_version, EXTENDED_SPEC_VERSION)
    session.add(job)
    session.flush()
    created = f"Created fine-tuning job: {job.id}"
    if plan.has_experts:
        created += f". The experts of '{base.name}' are not adapted, only its other modules"
    queue.add_event(session, job.id, created)
    if not plan.waits:
        training_files.settle(session, job, plan.hyperparameters)
    _note_files(session, job, plan.training_file, plan.validation_file)
    tracked_runs.track(session, context.settings, job)
    queue.note_missing_gpus(
        session, worker_registry.offered_gpus(session, context.settings.heartbeat_seconds)
    )
    if parent is not None:
        inherited = f"rank {parent.rank}, alpha {parent.alpha:g}"
        queue.add_event(session, job.id, f"Training goes on from '{parent.name}' ({inherited})")
    elif request.model != base.name:
        queue.add_event(
            session, job.id, f"'{request.model}' is '{base.name}' here: that model is trained.", level="warn"
        )
    return job


def _require_room(session: Session, context: Context) -> None:
    most = context.settings.max_waiting_jobs_per_project
    advisory_lock(session, f"jobs of {context.project_id}")  # two at once would not count each other
    waits = FineTuningJob.status.in_(("queued", "validating_files", "paused"))
    waiting = select(func.count()).where(FineTuningJob.project_id == context.project_id, waits)
    if (session.scalar(waiting) or 0) >= most:
        raise QuotaExceededError(
            f"{most:,} jobs of the project wait or are paused (TOQUE_MAX_WAITING_JOBS_PER_PROJECT): cancel "
            "some, or wait until some have run.",
            code="too_many_jobs",
        )


def plan_job(
    database: Database,
    context: Context,
    request: CreateJob,
    choice: Choice | None,
    *,
    is_dry_run: bool = False,
) -> JobPlan:
    """Return the job that the request asks for; `choice` says what its hold-out leaves for training.

    Raises:
        InvalidRequestError: a parameter or a training example is wrong.
        NotFoundError: the model or a file does not exist.
        FailedDependencyError: the model to continue from is quarantined or damaged.
        UnavailableError: the base model's files are damaged, or the storage does not have a file.
    """
    settings = context.settings
    method, requested = _method(request)
    if request.integrations:
        require_wandb(settings, request.integrations)
    named = {"training_file": request.training_file}
    if choice is None and request.validation_file is not None:
        named["validation_file"] = request.validation_file
    with database.reader() as session:
        model = find_model_to_train(session, context, request.model)
        parent = model if isinstance(model, Parent) else None
        name = model.base_model if isinstance(model, Parent) else model
        base = Catalogue.read(session, settings).get(name)
        files = {
            param: training_files.find_training_file(session, context.project_id, file_id, param)
            for param, file_id in named.items()
        }
    # Errors that do not depend on the files' content come first.
    known = KnownBase.read(settings, base)
    resolved = resolve_hyperparameters(
        requested,
        examples=MIN_EXAMPLES,
        base=base,
        hidden_size=known.hidden_size,
        modules=known.modules,
        method=method,
        parent=parent,
    )
    require_packable(settings, base, resolved)
    if parent is not None:
        requested |= parent.hyperparameters
    training_file = files["training_file"]
    examples = choice.examples if choice else training_file.examples or 0
    plan = JobPlan(
        base,
        parent,
        method,
        requested,
        training_file,
        files.get("validation_file"),
        examples,
        has_experts=known.has_experts,
    )
    if plan.waits:
        return plan
    return replace(
        plan, hyperparameters=training_files.resolve(database, context, plan, is_dry_run=is_dry_run)
    )


def get_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Return the project's job.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    job = session.scalar(
        select(FineTuningJob).where(FineTuningJob.id == job_id, FineTuningJob.project_id == project_id)
    )
    if job is None:
        raise NotFoundError(f"No fine-tuning job '{job_id}'.", code="fine_tuning_job_not_found")
    return job


def list_jobs(
    session: Session, project_id: str, *, metadata: dict[str, str] | None, after: str | None, limit: int
) -> tuple[Sequence[FineTuningJob], bool]:
    """Return a page of the project's jobs, newest first, and whether more follow.

    They have all pairs of `metadata`, or no metadata at all if it is None.
    """
    files = selectinload(FineTuningJob.training_file), selectinload(FineTuningJob.validation_file)
    query = select(FineTuningJob).where(FineTuningJob.project_id == project_id).options(*files)
    if metadata is None:
        # An empty object, like none at all, is no metadata.
        query = query.where(func.coalesce(cast(FineTuningJob.job_metadata, Text), "{}").in_(("{}", "null")))
    for key, value in (metadata or {}).items():
        query = query.where(FineTuningJob.job_metadata[key].as_string() == value)
    return fetch_page(
        session,
        query,
        (FineTuningJob.created_at, FineTuningJob.id),
        identity=FineTuningJob.id,
        after=after,
        limit=limit,
    )


def list_events(
    session: Session, project_id: str, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Event], bool]:
    """Return a page of the job's log, newest first, and whether more follow."""
    job = get_job(session, project_id, job_id)
    query = select(Event).where(Event.job_id == job.id)
    return fetch_page(session, query, (Event.seq,), identity=Event.id, after=after, limit=limit)


def list_checkpoints(
    session: Session, project_id: str, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Checkpoint], bool]:
    """Return a page of the job's checkpoints, newest first, and whether more follow."""
    job = get_job(session, project_id, job_id)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    return fetch_page(
        session, query, (Checkpoint.step_number,), identity=Checkpoint.id, after=after, limit=limit
    )


def cancel_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Cancel a job that has not ended; the worker that trains it finds out by its next fenced write.

    Raises:
        ConflictError: the job has succeeded or failed.
    """
    job = _move(session, project_id, job_id, "cancelled", "The job was cancelled.")
    if job.finished_at is None:
        job.finished_at = time.time()
        queue.announce_end(session, job.id, "cancelled")
    return job


def pause_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Pause a job; its worker saves what it can, and takes another.

    Raises:
        ConflictError: the job has ended.
    """
    job = _move(session, project_id, job_id, "paused", "The job was paused.")
    job.pause_reason = "requested"
    return job


def resume_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Put a paused job back into the queue; a job that waits or runs stays as it is.

    Raises:
        ConflictError: the job has ended.
        QuotaExceededError: the project's GPU-hours are used up.
    """
    job = get_job(session, project_id, job_id)
    if job.status in ("queued", "running"):
        return job
    if job.status == "paused":
        require_gpu_hours(session, project_id)
    job = _move(session, project_id, job_id, "queued", "The job was resumed; it waits for a worker.")
    job.pause_reason = None
    return job


def describe_job(session: Session, settings: Settings, job: FineTuningJob) -> JobObject:
    """Return the job as the API shows it: while it waits, with its place in the queue and expected start."""
    shown = JobObject.of(job)
    if job.status == "queued":
        shown.queue_position, shown.estimated_start = _forecast(session, settings, job)
    return shown


def _forecast(session: Session, settings: Settings, job: FineTuningJob) -> tuple[int, int | None]:
    """Return a waiting job's place in the queue (0: next) and its start, estimated from recent jobs."""
    ahead = queue.position(session, job)
    alive = len(worker_registry.alive(session, settings.heartbeat_seconds))
    recent = (
        select(FineTuningJob.finished_at - FineTuningJob.started_at)
        .where(FineTuningJob.status == "succeeded")
        .order_by(FineTuningJob.finished_at.desc())
        .limit(20)
    )
    durations = [seconds for seconds in session.scalars(recent) if seconds is not None]
    running = session.scalars(select(FineTuningJob.estimated_finish).where(FineTuningJob.status == "running"))
    finishes = [finish for finish in running if finish is not None]
    if not alive or not durations:
        return ahead, None
    first_free = min(finishes, default=time.time()) if len(finishes) >= alive else time.time()
    return ahead, int(first_free + ahead / alive * statistics.median(durations))


def count_by_status(session: Session) -> dict[str, int]:
    """Count the jobs of all projects by status."""
    rows = session.execute(select(FineTuningJob.status, func.count()).group_by(FineTuningJob.status))
    return {status: count for status, count in rows}  # noqa: C416 - rows are no pairs to the type checker


def _note_files(session: Session, job: FineTuningJob, training: File, validation: File | None) -> None:
    if job.status == "validating_files":
        queue.add_event(session, job.id, "Validating its files")
    if validation is not None and validation.sha256 == training.sha256:
        queue.add_event(
            session,
            job.id,
            "The validation file equals the training file: its figures measure memory, not learning.",
            level="warn",
        )


def _move(session: Session, project_id: str, job_id: str, status: str, message: str) -> FineTuningJob:
    """Move the job to a status; one that has that status stays as it is."""
    job = get_job(session, project_id, job_id)
    # Locked, so that a worker that is completing it either has done so or finds it moved.
    session.refresh(job, with_for_update=True)
    if job.status == status:
        return job
    if status not in ALLOWED_MOVES[job.status]:
        raise ConflictError(f"The job is {job.status}; it cannot become {status}.", code=f"job_{job.status}")
    record_attempt(session, job.id)
    job.status = status
    job.lease_until = job.worker_id = job.estimated_finish = None
    queue.add_event(session, job.id, message, level="warn")
    return job


def _method(request: CreateJob) -> tuple[str, dict[str, Any]]:
    """Return the method's name and the requested hyperparameters, from the three places that may hold any."""
    method = request.method.type if request.method else DEFAULT_METHOD
    if method not in METHODS:
        raise InvalidRequestError(
            f"The method '{method}' is not supported; supported: {', '.join(METHODS)}.",
            code="unsupported_method",
            param="method.type",
        )
    places: list[tuple[str, LoraHyperparameters | None]] = [
        (f"method.{method}.hyperparameters.", _of_method(request, method)),
        ("hyperparameters.", request.hyperparameters),
        (
            "",
            LoraHyperparameters(
                **{name: getattr(request, name) for name in LoraHyperparameters.model_fields}
            ),
        ),
    ]
    merged: dict[str, Any] = {}
    for prefix, place in places:
        for name, value in (place.model_dump(exclude_none=True) if place else {}).items():
            if merged.get(name, value) != value:
                raise InvalidRequestError(
                    f"'{name}' is given twice, with different values.",
                    code="invalid_value",
                    param=prefix + name,
                )
            merged[name] = value
    return method, merged


def _of_method(request: CreateJob, method: str) -> RequestedHyperparameters | None:
    for name in METHODS:
        if name != method and request.method and getattr(request.method, name) is not None:
            raise InvalidRequestError(
                f"The method is '{method}': it takes no settings of '{name}'.",
                code="invalid_value",
                param=f"method.{name}",
            )
    settings = getattr(request.method, method) if request.method else None
    return settings.hyperparameters if settings else None
