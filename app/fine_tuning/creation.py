"""Creates fine-tuning jobs."""

from __future__ import annotations

import secrets
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database, advisory_lock
from app.core.errors import QuotaExceededError
from app.core.idempotency import IdempotentRequest
from app.core.tracing import trace_headers
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning import queue, tracked_runs, training_files, worker_registry
from app.fine_tuning.forecast import describe_job
from app.fine_tuning.gpu_hours import require_gpu_hours
from app.fine_tuning.hold_out.service import keep_split, made_split
from app.fine_tuning.hold_out.split import IncomingSplit
from app.fine_tuning.methods import METHODS
from app.fine_tuning.models import EXTENDED_SPEC_VERSION, FineTuningJob
from app.fine_tuning.plan import JobPlan
from app.fine_tuning.planning import plan_job
from app.fine_tuning.schemas import CreateJob, JobObject
from app.fine_tuning.service import get_job
from app.models.adapters import service as adapters_service
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
