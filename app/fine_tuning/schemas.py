"""Fine-tuning on the wire: OpenAI's job, event and checkpoint objects.

Source: the types of OpenAI's Python client, `openai.types.fine_tuning`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.core.pagination import Identified
from app.fine_tuning.hyperparameters import (
    Auto,
    DpoHyperparameters,
    LoraHyperparameters,
    RequestedHyperparameters,
)
from app.fine_tuning.models import Checkpoint, Event, FineTuningJob
from app.models.adapters.schemas import Suffix

MetadataKey = Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\u0000]*$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\u0000]*$")]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class MethodSettings(BaseModel):
    """A method's own object."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: RequestedHyperparameters | None = None


class DpoSettings(BaseModel):
    """DPO's."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: DpoHyperparameters | None = None


class UnsupportedMethodSettings(BaseModel):
    """Settings of a method that is refused by name; what is in them does not matter."""

    model_config = ConfigDict(extra="allow")


class Method(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: MethodSettings | None = None
    dpo: DpoSettings | None = None
    reinforcement: UnsupportedMethodSettings | None = None


class Integration(BaseModel):
    """A third-party integration; none is supported, so its content does not matter."""

    model_config = ConfigDict(extra="allow")

    type: str


class SplitRequest(BaseModel):
    """How to hold some of the training file's examples out (`validation_file: "auto"`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)] = 0.1
    """Of the different examples; equal ones count once, and are never parted."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 0


AUTO_SPLIT = "auto"
"""As a job's validation file: some of its training file."""


class CreateJob(LoraHyperparameters):
    """A request to fine-tune; what `LoraHyperparameters` adds may be given here or with the others."""

    model: str
    """A base model, or a fine-tuned model or checkpoint to go on from."""
    training_file: str
    validation_file: str | None = None
    """A file's id, or `"auto"`: a hold-out of the training file."""
    validation_split: SplitRequest | None = None
    """Of that hold-out; alone, it asks for one."""
    dry_run: bool = False
    """Only say what would happen: the answer is a `fine_tuning.job.preflight`, and nothing is kept."""
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] | None = None
    method: Method | None = None
    hyperparameters: RequestedHyperparameters | None = None
    """Deprecated by OpenAI in favour of `method`."""
    metadata: Metadata | None = None
    integrations: list[Integration] | None = None
    priority: Annotated[int, Field(ge=-100, le=100, strict=True)] | None = None
    """Among the project's waiting jobs, higher goes first; 0 where absent."""

    @property
    def file_ids(self) -> list[str]:
        """Of the files that it names."""
        named = (self.training_file, self.validation_file)
        return [file_id for file_id in named if file_id not in (None, AUTO_SPLIT)]


class SplitObject(BaseModel):
    """How the validation file was made of the training file."""

    share: float
    seed: int
    training_file: str
    """What is left, which the job learns from."""
    examples: int
    """In the rest."""
    held_out: int
    """In the validation file."""


class JobError(BaseModel):
    """Why a job failed, in words that its owner can act on."""

    code: str
    message: str
    param: str | None = None


class ResolvedHyperparameters(BaseModel):
    """What the job is trained with; what depends on its files is `auto` until they are checked."""

    n_epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"
    learning_rate: float | Auto = "auto"
    lora_rank: int | Auto = "auto"
    lora_alpha: int | float | Auto = "auto"
    lora_dropout: float | Auto = "auto"
    warmup_ratio: float | Auto = "auto"
    weight_decay: float | Auto = "auto"
    max_length: int | Auto = "auto"
    checkpoint_steps: int | Auto | None = None
    beta: float | Auto | None = None
    """DPO alone."""


class JobObject(Identified):
    """A fine-tuning job."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: ResolvedHyperparameters
    integrations: tuple[()] = ()
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    """As it was asked for: the base, or the parent."""
    parent: str | None
    """The fine-tuned model that training goes on from; null where it begins with the base."""
    priority: int
    pause_reason: str | None
    queue_position: int | None = None
    """How many waiting jobs go before it; only on a single waiting job."""
    estimated_start: int | None = None
    organization_id: str
    result_files: list[str]
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    suffix: str | None
    trained_tokens: int | None
    training_file: str
    training_file_sha256: str
    """Of the bytes that it is trained on, whatever becomes of the file."""
    validation_file: str | None
    validation_file_sha256: str | None
    validation_split: SplitObject | None = None

    @classmethod
    def of(cls, job: FineTuningJob) -> JobObject:
        """The row as the API shows it."""
        hyperparameters = ResolvedHyperparameters.model_validate(job.hyperparameters)
        of_method = hyperparameters.model_dump(exclude=None if job.method == "dpo" else {"beta"})
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            error=JobError.model_validate(job.error) if job.error else None,
            estimated_finish=_seconds(job.estimated_finish) if job.status == "running" else None,
            fine_tuned_model=job.fine_tuned_model,
            finished_at=_seconds(job.finished_at),
            hyperparameters=hyperparameters,
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
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: Event) -> EventObject:
        """The row as the API shows it."""
        return cls(
            id=event.id,
            created_at=int(event.created_at),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


class CheckpointMetrics(BaseModel):
    """Metrics at the checkpoint's step; those of rewards are DPO's."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = None
    train_reward_margin: float | None = None
    valid_reward_accuracy: float | None = None
    valid_reward_margin: float | None = None
    full_valid_reward_accuracy: float | None = None
    full_valid_reward_margin: float | None = None


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
        """The row as the API shows it."""
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
