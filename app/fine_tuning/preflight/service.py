"""Dry runs: what a job would do and refuse, and what time and memory it would take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.context import Context
from app.core.child_process import in_child
from app.core.database import Database
from app.core.errors import UnavailableError
from app.core.settings import BaseModelEntry, Settings
from app.datasets.report import MIN_EXAMPLES
from app.datasets.request_file import read_request_file
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning import queue, worker_registry
from app.fine_tuning.geometry import Geometry
from app.fine_tuning.hold_out.service import choose_split
from app.fine_tuning.hold_out.split import Choice, choose
from app.fine_tuning.known_base import KnownBase
from app.fine_tuning.packing import Limits
from app.fine_tuning.planning import plan_job
from app.fine_tuning.preflight import estimates
from app.fine_tuning.preflight.inspection import Found, Subject, inspect
from app.fine_tuning.preflight.schemas import (
    Basis,
    HeldOut,
    JobPreflight,
    Lengths,
    MemoryEstimate,
    Sample,
    TimeEstimate,
)
from app.fine_tuning.quantization import require_packable
from app.fine_tuning.requested_hyperparameters import resolve_hyperparameters
from app.fine_tuning.schemas import CreateJob, ResolvedHyperparameters, SplitRequest
from app.fine_tuning.training_files import require_enough
from app.models.catalogue import is_prepared, template_options


@dataclass(frozen=True, slots=True)
class _Files:
    """The files that the job would train on and be evaluated with."""

    training: Path
    validation: Path | None
    choice: Choice | None
    examples: int
    validation_examples: int
    training_name: str
    validation_name: str | None


def check_job(database: Database, context: Context, request: CreateJob) -> JobPreflight:
    """Return what the requested job would do. No transaction is open while the files are read.

    Raises:
        InvalidRequestError: `creation.create_job` would refuse the request, too, for another reason than that
            the base model cannot learn from an example; the answer lists such examples.
        NotFoundError: the base model or a file does not exist.
        FailedDependencyError: the model to continue from is quarantined or damaged.
        UnavailableError: a file is still being checked or missing on the storage, or the base model is not
            prepared on this machine.
    """
    chosen = choose_split(database, context, request)
    choice = chosen[1] if chosen else None
    plan = plan_job(database, context, request, choice, is_dry_run=True)
    if plan.waits:
        message = "A file is still being checked; ask again in a moment."
        raise UnavailableError(message, code="file_not_checked")
    training, validation = plan.training_file, plan.validation_file
    with ExitStack() as stack:

        def path_of(file: File) -> Path:
            return stack.enter_context(files_service.content(context.storage, file))

        files = _Files(
            training=path_of(training),
            validation=path_of(validation) if validation else None,
            choice=choice,
            examples=plan.examples,
            validation_examples=(validation.examples or 0) if validation else 0,
            training_name=training.id,
            validation_name=validation.id if validation else None,
        )
        return _preflight(
            database,
            context.settings,
            plan.base,
            plan.method,
            plan.hyperparameters,
            files,
            request.seed or 0,
            lambda subject: in_child(inspect, subject),
        )


def check_files(
    database: Database | None,
    settings: Settings,
    base: BaseModelEntry,
    training: Path,
    validation: Path | None,
    split: SplitRequest | None,
    method: str,
    requested: dict[str, Any],
    seed: int,
) -> JobPreflight:
    """Return what a job of two local files would do. A wrong line is a finding here, not an error.

    Raises:
        InvalidRequestError: a hyperparameter does not fit, or there are too few examples.
        UnavailableError: the base model is not prepared on this machine, or its files are damaged.
    """
    known = KnownBase.read(settings, base)
    choice = choose(training, split, MIN_EXAMPLES) if split else None
    examples = choice.examples if choice else _count(training, "training_file")
    require_enough(examples)
    hyperparameters = resolve_hyperparameters(
        requested,
        examples=examples,
        base=base,
        hidden_size=known.hidden_size,
        modules=known.modules,
        method=method,
    )
    require_packable(settings, base, hyperparameters)
    files = _Files(
        training=training,
        validation=validation,
        choice=choice,
        examples=examples,
        validation_examples=_count(validation, "validation_file") if validation else 0,
        training_name=training.name,
        validation_name=validation.name if validation else None,
    )
    return _preflight(database, settings, base, method, hyperparameters, files, seed, inspect)


def _preflight(
    database: Database | None,
    settings: Settings,
    base: BaseModelEntry,
    method: str,
    hyperparameters: dict[str, Any],
    files: _Files,
    seed: int,
    inspect_files: Callable[[Subject], Found],
) -> JobPreflight:
    if not is_prepared(settings, base):
        raise UnavailableError(
            f"'{base.name}' is not prepared on this machine, so its tokens cannot be counted: "
            f"`toque models pull {base.name}` prepares it.",
            code="base_model_not_prepared",
        )
    folder = settings.base_model_dir(base)
    geometry = Geometry.load(folder)
    with database.reader() if database is not None else nullcontext() as session:
        basis = estimates.find_basis(session, base, geometry, settings.heartbeat_seconds, hyperparameters)
        waits = _missing_gpus(session, settings, hyperparameters["gpus"])
    held_out = files.choice.held_out if files.choice else frozenset[int]()
    subject = Subject(
        base_model_dir=folder,
        template=template_options(base),
        training=files.training,
        validation=files.validation,
        held_out=held_out,
        examples=files.examples,
        validation_examples=files.validation_examples or len(held_out),
        method=method,
        limits=Limits.of_device(is_gpu=basis.is_gpu, vocabulary=geometry.vocabulary),
        n_epochs=hyperparameters["n_epochs"],
        batch_size=hyperparameters["batch_size"],
        max_length=hyperparameters["max_length"],
        checkpoint_steps=hyperparameters["checkpoint_steps"],
        seed=seed,
    )
    found = inspect_files(subject)
    steps_per_epoch = -(-subject.examples // subject.batch_size)
    memory, time = _estimates(geometry, basis, subject, found, hyperparameters)
    work = found.work.training if found.work else None
    resolved = ResolvedHyperparameters.model_validate(hyperparameters)
    computed = (work.rows - work.padding) / subject.n_epochs if work else 0
    return JobPreflight(
        ready=not found.refused.total,
        waits=waits,
        model=base.name,
        method={"type": method, method: {"hyperparameters": resolved.model_dump()}},
        hyperparameters=resolved,
        training_file=files.training_name,
        validation_file=files.validation_name,
        validation_split=(
            HeldOut(
                share=files.choice.request.share,
                seed=files.choice.request.seed,
                examples=files.choice.examples,
                held_out=len(held_out),
            )
            if files.choice
            else None
        ),
        examples=subject.examples,
        validation_examples=subject.validation_examples,
        sample=(
            Sample(examples=found.sampled, of=subject.examples, seed=seed)
            if found.sampled < subject.examples
            else None
        ),
        steps=steps_per_epoch * subject.n_epochs,
        steps_per_epoch=steps_per_epoch,
        tokens_per_epoch=found.tokens_per_epoch,
        target_tokens_per_epoch=found.targets_per_epoch,
        lengths=_lengths(found.lengths, subject.max_length),
        refused=found.refused,
        without_target=found.without_target,
        special_tokens=found.special_tokens,
        overlap=found.overlap,
        shared_share=round(1 - computed / found.tokens_per_epoch, 4) if work else 0.0,
        padding_share=round(work.padding / work.rows, 4) if work else 0.0,
        layout=found.mixing.layout if found.mixing else None,
        layout_reason=found.mixing.reason if found.mixing else None,
        memory=memory,
        time=time,
        rendered=found.rendered,
    )


def _missing_gpus(session: Session | None, settings: Settings, gpus: int) -> str | None:
    if session is None:
        return None
    offered = worker_registry.offered_gpus(session, settings.heartbeat_seconds)
    return f"{queue.missing_gpus(gpus, offered)}." if 0 < offered < gpus else None


def _estimates(
    geometry: Geometry,
    basis: estimates.Basis,
    subject: Subject,
    found: Found,
    hyperparameters: dict[str, Any],
) -> tuple[MemoryEstimate, TimeEstimate]:
    trainable = estimates.trainable_parameters(geometry, hyperparameters)
    estimate = estimates.estimate(
        geometry, basis, found.work, trainable=trainable, tokens=found.tokens_per_epoch
    )
    shown = Basis(
        kind=basis.kind,
        device=basis.device,
        jobs=basis.jobs,
        tokens_per_second=round(basis.tokens_per_second, 1) if basis.tokens_per_second else None,
        measured_at=int(basis.measured_at) if basis.measured_at else None,
    )
    device_bytes = basis.device_memory_bytes
    memory = MemoryEstimate(
        peak_bytes=estimate.peak_memory_bytes,
        base_model_bytes=basis.resident_memory_bytes,
        quantization=hyperparameters["quantization"],
        adapter_bytes=estimate.adapter_memory_bytes,
        activation_bytes=estimate.activation_memory_bytes,
        activation_checkpointing=estimate.activation_checkpointing,
        device_bytes=device_bytes,
        fits=estimate.peak_memory_bytes <= device_bytes if device_bytes is not None else None,
        basis=shown,
    )
    steps_seconds = max(1e-9, estimate.seconds - basis.startup_seconds)
    time = TimeEstimate(
        seconds=round(estimate.seconds, 1),
        startup_seconds=round(basis.startup_seconds, 1),
        tokens_per_second=round(found.tokens_per_epoch * subject.n_epochs / steps_seconds, 1),
        basis=shown,
    )
    return memory, time


def _count(path: Path, param: str) -> int:
    return sum(1 for _ in read_request_file(path, param=param))


def _lengths(tokens: list[int], limit: int) -> Lengths | None:
    """Summarize an ascending list of lengths."""
    if not tokens:
        return None
    p50, p90 = (tokens[min(len(tokens) - 1, int(len(tokens) * share))] for share in (0.5, 0.9))
    return Lengths(p50=p50, p90=p90, max=tokens[-1], limit=limit)
