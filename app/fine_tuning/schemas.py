"""Fine-tuning on the wire: OpenAI's job, event and checkpoint objects.

Source: the types of OpenAI's Python client, `openai.types.fine_tuning`.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from app.core.optional_field import OmittedIfNone
from app.core.pagination import Identified
from app.fine_tuning import methods
from app.fine_tuning.integrations import Integration, Integrations
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import HYPERPARAMETERS, taken_by
from app.fine_tuning.methods.metrics import Metrics
from app.fine_tuning.models import Checkpoint, Event, FineTuningJob
from app.fine_tuning.requested_hyperparameters import (
    Auto,
    LoraHyperparameters,
    RequestedHyperparameters,
    request_model,
)
from app.models.adapters.schemas import Suffix

MetadataKey = Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\u0000]*$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\u0000]*$")]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class MethodSettings(BaseModel):
    """The settings of a method without hyperparameters of its own."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: RequestedHyperparameters | None = None


class UnsupportedMethodSettings(BaseModel):
    """The settings of a method that is refused by name; what is in them does not matter."""

    model_config = ConfigDict(extra="allow")


_REFUSED_METHODS = ("reinforcement",)
"""OpenAI's methods that are not supported: a request for one is refused with a clear message."""


def _settings_model(method: methods.Method) -> type[BaseModel]:
    hyperparameters = request_model(method)
    if hyperparameters is RequestedHyperparameters:
        return MethodSettings
    return create_model(
        f"{method.name.capitalize()}Settings",
        __config__=ConfigDict(extra="forbid"),
        __doc__=f"The settings of `{method.name}`.",
        __module__=__name__,
        hyperparameters=(cast(Any, hyperparameters | None), None),
    )


def _method_fields() -> type[BaseModel]:
    """Make a model of the method's name, and of an object for each method's settings."""
    refused = [name for name in _REFUSED_METHODS if name not in METHODS]
    settings = {name: _settings_model(method) for name, method in METHODS.items()}
    settings |= dict.fromkeys(refused, UnsupportedMethodSettings)
    fields: dict[str, Any] = {name: (model | None, None) for name, model in settings.items()}
    return create_model("_MethodFields", type=(cast(Any, Literal)[tuple(settings)], ...), **fields)


class Method(_method_fields()):
    """How to train."""

    model_config = ConfigDict(extra="forbid")

    if TYPE_CHECKING:
        type: str


class SplitRequest(BaseModel):
    """How some of the training file's examples are held out (`validation_file: "auto"`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)] = 0.1
    """The share of distinct examples to hold out; equal examples count once and are never separated."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 0


AUTO_SPLIT = "auto"
"""The value of `validation_file` that asks for a hold-out of the training file."""


class CreateJob(LoraHyperparameters):
    """A request to fine-tune; `LoraHyperparameters` may be given here or with the others."""

    model: str
    """A base model, or a fine-tuned model or checkpoint to continue from."""
    training_file: str
    validation_file: str | None = None
    """A file's id, or `"auto"` for a hold-out of the training file."""
    validation_split: SplitRequest | None = None
    """How the hold-out is made; given without a `validation_file`, it asks for one."""
    dry_run: bool = False
    """Only say what would happen: the answer is a `fine_tuning.job.preflight`, and nothing is kept."""
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] | None = None
    method: Method | None = None
    hyperparameters: RequestedHyperparameters | None = None
    """Deprecated by OpenAI in favour of `method`."""
    metadata: Metadata | None = None
    integrations: Integrations | None = None
    """Where the job's metrics are sent besides its events; only where the operator has set a tracker."""
    priority: Annotated[int, Field(ge=-100, le=100, strict=True)] | None = None
    """The job's rank among the project's waiting jobs: the highest goes first. The default is 0."""

    @property
    def file_ids(self) -> list[str]:
        """The ids of the files that the request names."""
        named = (self.training_file, self.validation_file)
        return [file_id for file_id in named if file_id not in (None, AUTO_SPLIT)]


class SplitObject(BaseModel):
    """How the validation file was split off the training file."""

    share: float
    seed: int
    training_file: str
    """The id of the file with the other examples, which the job trains on."""
    examples: int
    """The number of examples in that file."""
    held_out: int
    """The number of examples in the validation file."""


class JobError(BaseModel):
    """Why a job failed, in words that its owner can act on."""

    code: str
    message: str
    param: str | None = None


def _resolved_fields() -> type[BaseModel]:
    """Make a model of the hyperparameters; the default of each is `auto`, or None if it may be absent."""
    fields: dict[str, Any] = {}
    for each in HYPERPARAMETERS:
        may_be_absent = NoneType in get_args(each.resolved_type)
        fields[each.name] = (each.resolved_type | cast(Any, Auto), None if may_be_absent else "auto")
    return create_model("_ResolvedFields", **fields)


class ResolvedHyperparameters(_resolved_fields()):
    """What the job is trained with; what depends on its files is `auto` until they are checked."""


class JobObject(Identified):
    """A fine-tuning job."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: ResolvedHyperparameters
    integrations: list[Integration]
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    """The model as the request named it: the base, or the parent."""
    parent: str | None
    """The fine-tuned model that training continues from; null if it starts from the base."""
    priority: int
    pause_reason: str | None
    queue_position: int | None = None
    """The number of waiting jobs before it; only given where a single waiting job is retrieved."""
    estimated_start: int | None = None
    organization_id: str
    result_files: list[str]
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    suffix: str | None
    trained_tokens: int | None
    training_file: str
    training_file_sha256: str
    """The hash of the bytes that the job trains on, whatever becomes of the file."""
    validation_file: str | None
    validation_file_sha256: str | None
    validation_split: SplitObject | None = None

    @classmethod
    def of(cls, job: FineTuningJob) -> JobObject:
        """Convert the row to what the API shows."""
        hyperparameters = ResolvedHyperparameters.model_validate(job.hyperparameters)
        of_method = hyperparameters.model_dump(include={each.name for each in taken_by(METHODS[job.method])})
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            error=JobError.model_validate(job.error) if job.error else None,
            estimated_finish=_seconds(job.estimated_finish) if job.status == "running" else None,
            fine_tuned_model=job.fine_tuned_model,
            finished_at=_seconds(job.finished_at),
            hyperparameters=hyperparameters,
            integrations=[Integration.model_validate(each) for each in job.integrations or ()],
            metadata=job.job_metadata,
            method={"type": job.method, job.method: {"hyperparameters": of_method}},
            model=job.parent or job.model,
            parent=job.parent,
            priority=-job.rank,
            pause_reason=job.pause_reason,
            organization_id=job.project_id,
            result_files=[job.result_file_id] if job.result_file_id else [],
            seed=job.seed,
            status=job.status,  # pyright: ignore[reportArgumentType] - a key of ALLOWED_MOVES
            suffix=job.suffix,
            trained_tokens=job.trained_tokens,
            training_file=job.training_file_id,
            training_file_sha256=job.training_file.sha256,
            validation_file=job.validation_file_id,
            validation_file_sha256=job.validation_file.sha256 if job.validation_file else None,
            validation_split=(
                SplitObject(training_file=job.learnt_file_id, **job.validation_split)
                if job.validation_split
                else None
            ),
        )


class EventObject(Identified):
    """A line of a job's log."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: OmittedIfNone[dict[str, Any]] = None

    @classmethod
    def of(cls, event: Event) -> EventObject:
        """Convert the row to what the API shows."""
        return cls(
            id=event.id,
            created_at=int(event.created_at),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


def _metric_fields() -> type[BaseModel]:
    hints = get_type_hints(Metrics)
    fields: dict[str, Any] = {
        each.name: (hints[each.name], ...)
        if each.required
        else (OmittedIfNone[hints[each.name]], each.default)
        for each in msgspec.structs.fields(Metrics)
    }
    return create_model("_MetricFields", **fields)


class CheckpointMetrics(_metric_fields()):
    """The metrics of the checkpoint's step that were measured; those of rewards are DPO's."""


class CheckpointObject(Identified):
    """A saved step that can be served."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> CheckpointObject:
        """Convert the row to what the API shows."""
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at),
            fine_tuned_model_checkpoint=checkpoint.fine_tuned_model_checkpoint,
            fine_tuning_job_id=checkpoint.job_id,
            metrics=CheckpointMetrics.model_validate(checkpoint.metrics),
            step_number=checkpoint.step_number,
        )


def _seconds(time: float | None) -> int | None:
    return int(time) if time is not None else None
