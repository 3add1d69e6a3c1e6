"""Rules on fine-tuning jobs."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from app.core.errors import ConflictError, InvalidRequestError, NotFoundError
from app.core.idempotency import CreationRequest
from app.core.pagination import fetch_page
from app.core.settings import BaseModelEntry, Settings
from app.datasets.report import MIN_EXAMPLES
from app.files.models import File
from app.fine_tuning import queue, training_files, workers
from app.fine_tuning.hold_out.service import keep_split, made_split
from app.fine_tuning.hold_out.split import Choice, IncomingSplit
from app.fine_tuning.hyperparameters import (
    LoraHyperparameters,
    RequestedHyperparameters,
    resolve_hyperparameters,
)
from app.fine_tuning.methods import SUPPORTED_METHODS
from app.fine_tuning.models import ALLOWED_MOVES, EXTENDED_SPEC_VERSION, Checkpoint, Event, FineTuningJob
from app.fine_tuning.schemas import CreateJob
from app.models.adapters.parent import Parent
from app.models.aliases import service as aliases_service
from app.models.catalogue import find_base_model, hidden_size
from app.storage.base import Storage


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job as it would be created: everything about the request was checked."""

    base: BaseModelEntry
    parent: Parent | None
    method: str
    hyperparameters: dict[str, Any]
    """As requested, where the files are still being checked."""
    training_file: File
    validation_file: File | None
    """None, too, where it is a hold-out yet to be made."""
    examples: int
    """To learn from; 0 where that is not known yet."""

    @property
    def waits(self) -> bool:
        """Whether a file is still being checked."""
        return "uploaded" in (self.training_file.status, self.validation_file and self.validation_file.status)


def create_job(
    reading: Session,
    session: Session,
    storage: Storage,
    settings: Settings,
    creating: CreationRequest,
    request: CreateJob,
) -> FineTuningJob:
    """Checks everything that can be checked without a GPU, and queues the job.

    While a file is still being checked the job waits in `validating_files` (`training_files.admit_waiting`).
    A hold-out is made with `reading` alone, before `session` is used: its transaction may hold up others.

    Raises:
        InvalidRequestError: a parameter or a training example is wrong; nothing is kept.
        NotFoundError: the model or a file does not exist.
        FailedDependencyError: the model to go on from is quarantined or damaged.
        UnavailableError: a hold-out is to be made of a file that is still being checked.
    """
    with made_split(reading, storage, creating.project_id, request) as split:
        return _create(session, storage, settings, creating, request, split)


def _create(
    session: Session,
    storage: Storage,
    settings: Settings,
    creating: CreationRequest,
    request: CreateJob,
    split: IncomingSplit | None,
) -> FineTuningJob:
    project_id, content = creating.project_id, request.model_dump(exclude_unset=True)
    if (known := creating.find(session, "fine_tuning.job", content)) is not None:
        return get_job(session, project_id, known)
    choice = split.choice if split else None
    plan = plan_job(session, storage, settings, project_id, request, choice)
    base, parent = plan.base, plan.parent
    job = FineTuningJob(
        project_id=project_id,
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
        rank=-(request.priority or 0),
    )
    if split is not None:
        keep_split(session, storage, plan.training_file, split, job)
    if split is not None or parent is not None or plan.method != "supervised":
        job.spec_version = EXTENDED_SPEC_VERSION
    session.add(job)
    session.flush()
    creating.remember(session, "fine_tuning.job", content, job.id)
    queue.add_event(session, job.id, f"Created fine-tuning job: {job.id}")
    _note_files(session, job, plan.training_file, plan.validation_file)
    if parent is not None:
        inherited = f"rank {parent.rank}, alpha {parent.alpha:g}"
        queue.add_event(session, job.id, f"Training goes on from '{parent.name}' ({inherited})")
    elif request.model != base.name:
        queue.add_event(
            session, job.id, f"'{request.model}' is '{base.name}' here: that model is trained.", level="warn"
        )
    return job


def plan_job(
    session: Session,
    storage: Storage,
    settings: Settings,
    project_id: str,
    request: CreateJob,
    choice: Choice | None,
    *,
    is_dry_run: bool = False,
) -> JobPlan:
    """The job that the request asks for; `choice` is what its hold-out leaves it.

    Raises:
        InvalidRequestError: a parameter or a training example is wrong.
        NotFoundError: the model or a file does not exist.
        FailedDependencyError: the model to go on from is quarantined or damaged.
    """
    method, requested = _method(request)
    model = aliases_service.find_model_to_train(settings, storage, session, project_id, request.model)
    parent = model if isinstance(model, Parent) else None
    base = find_base_model(settings, model.base_model if isinstance(model, Parent) else model)
    named = {"training_file": request.training_file}
    if choice is None and request.validation_file is not None:
        named["validation_file"] = request.validation_file
    files = {
        param: training_files.find_training_file(session, project_id, file_id, param)
        for param, file_id in named.items()
    }
    # What is wrong whatever the files hold is said first.
    resolve_hyperparameters(
        requested,
        examples=MIN_EXAMPLES,
        base=base,
        hidden_size=hidden_size(settings, base),
        method=method,
        parent=parent,
    )
    if parent is not None:
        requested |= {"lora_rank": parent.rank, "lora_alpha": parent.alpha}
    training_file = files["training_file"]
    examples = choice.examples if choice else training_file.examples or 0
    plan = JobPlan(base, parent, method, requested, training_file, files.get("validation_file"), examples)
    if plan.waits:
        return plan
    hyperparameters = training_files.resolve(
        session,
        storage,
        settings,
        base=base,
        method=method,
        files=files,
        examples=examples,
        requested=requested,
        is_dry_run=is_dry_run,
    )
    return replace(plan, hyperparameters=hyperparameters)


def get_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """The project's job.

    Raises:
        NotFoundError: not there, or another project's.
    """
    job = session.scalar(
        select(FineTuningJob).where(FineTuningJob.id == job_id, FineTuningJob.project_id == project_id)
    )
    if job is None:
        raise NotFoundError(f"No fine-tuning job '{job_id}'.", code="fine_tuning_job_not_found")
    return job


def list_jobs(
    session: Session, project_id: str, *, metadata: dict[str, str], after: str | None, limit: int
) -> tuple[Sequence[FineTuningJob], bool]:
    """A page of the project's jobs, newest first, and whether more follow."""
    files = selectinload(FineTuningJob.training_file), selectinload(FineTuningJob.validation_file)
    query = select(FineTuningJob).where(FineTuningJob.project_id == project_id).options(*files)
    for key, value in metadata.items():
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
    """A page of the job's log, newest first, and whether more follow."""
    job = get_job(session, project_id, job_id)
    query = select(Event).where(Event.job_id == job.id)
    return fetch_page(session, query, (Event.seq,), identity=Event.id, after=after, limit=limit)


def list_checkpoints(
    session: Session, project_id: str, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Checkpoint], bool]:
    """A page of the job's checkpoints, newest first, and whether more follow."""
    job = get_job(session, project_id, job_id)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    return fetch_page(
        session, query, (Checkpoint.step_number,), identity=Checkpoint.id, after=after, limit=limit
    )


def cancel_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Ends a job that has not ended; the worker that trains it finds out by its next fenced write.

    Raises:
        ConflictError: the job has succeeded or failed.
    """
    job = _move(session, project_id, job_id, "cancelled", "The job was cancelled.")
    job.finished_at = job.finished_at or time.time()
    return job


def pause_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Sets a job aside; its worker saves what it can, and takes another.

    Raises:
        ConflictError: the job has ended.
    """
    job = _move(session, project_id, job_id, "paused", "The job was paused.")
    job.pause_reason = "requested"
    return job


def resume_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Puts a paused job back into the queue; on one that waits or runs it changes nothing.

    Raises:
        ConflictError: the job has ended.
    """
    if get_job(session, project_id, job_id).status == "running":
        return get_job(session, project_id, job_id)
    job = _move(session, project_id, job_id, "queued", "The job was resumed; it waits for a worker.")
    job.pause_reason = None
    return job


def forecast(session: Session, settings: Settings, job: FineTuningJob) -> tuple[int, int | None]:
    """A waiting job's place in the queue (0: next), and when it may start, by what jobs took lately."""
    ahead = queue.position(session, job)
    hands = len(workers.alive(session, settings.heartbeat_seconds))
    recent = (
        select(FineTuningJob.finished_at - FineTuningJob.started_at)
        .where(FineTuningJob.status == "succeeded")
        .order_by(FineTuningJob.finished_at.desc())
        .limit(20)
    )
    durations = [seconds for seconds in session.scalars(recent) if seconds is not None]
    running = session.scalars(select(FineTuningJob.estimated_finish).where(FineTuningJob.status == "running"))
    finishes = [finish for finish in running if finish is not None]
    if not hands or not durations:
        return ahead, None
    first_free = min(finishes, default=time.time()) if len(finishes) >= hands else time.time()
    return ahead, int(first_free + ahead / hands * statistics.median(durations))


def count_by_status(session: Session) -> dict[str, int]:
    """Jobs of all projects."""
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
    """Moves the job; to the status that it has, it changes nothing."""
    job = get_job(session, project_id, job_id)
    # Locked, so that a worker that is completing it either has done so or finds it moved.
    session.refresh(job, with_for_update=True)
    if job.status == status:
        return job
    if status not in ALLOWED_MOVES[job.status]:
        raise ConflictError(
            f"The job is {job.status}; it cannot become {status}.", code=f"job_{job.status}", param="status"
        )
    job.status = status
    job.lease_until = job.worker_id = job.estimated_finish = None
    queue.add_event(session, job.id, message, level="warn")
    return job


def _method(request: CreateJob) -> tuple[str, dict[str, Any]]:
    """The method's name and every hyperparameter asked for, from the three places where one may stand."""
    method = request.method.type if request.method else "supervised"
    if method not in SUPPORTED_METHODS:
        raise InvalidRequestError(
            f"The method '{method}' is not supported; supported: {', '.join(SUPPORTED_METHODS)}.",
            code="unsupported_method",
            param="method.type",
        )
    if request.integrations:
        raise InvalidRequestError(
            "Integrations are not supported; follow the job's events instead.",
            code="unsupported_parameter",
            param="integrations",
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
    for name in SUPPORTED_METHODS:
        if name != method and request.method and getattr(request.method, name) is not None:
            raise InvalidRequestError(
                f"The method is '{method}': it takes no settings of '{name}'.",
                code="invalid_value",
                param=f"method.{name}",
            )
    settings = getattr(request.method, method) if request.method else None
    return settings.hyperparameters if settings else None
