"""The messages between a worker and its trainer child, one JSON object per line.

The worker writes a `TrainingSpec` to the child's stdin. The child answers with any number of `Progress`
messages and ends each job with exactly one of `Finished`, `Stopped` or `Failed`. SIGTERM asks it to save a
checkpoint of every job and stop them all, `StopJob` to do so with one. All jobs of a child have the same
number of GPUs, and those that it has at the same time share a base model. Paths are absolute.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from app.datasets.chat_template import TemplateOptions
from app.fine_tuning.methods import DEFAULT_METHOD
from app.fine_tuning.methods.hyperparameters import Hyperparameters
from app.fine_tuning.methods.metrics import Metrics
from app.fine_tuning.packing import Work
from app.models.token_mixing import Layout

OUT_OF_MEMORY, RANK_DIED = 81, 82
"""Exit codes of a trainer that trains on several GPUs: one of its ranks ran out of memory, or died."""


StopCause = Literal["request", "memory", "other_job"]
"""Why a job is stopped: the worker wants it, it does not fit into memory beside others, or another one has
failed and left the base model in an unknown state."""


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """One attempt at a job."""

    job_id: str
    attempt: str = ""
    """Tells it apart from others of the trainer's, those at the same job among them."""
    base_model: str
    """The base model's name in the catalogue, which is written into `adapter_config.json`."""
    base_model_dir: str
    training_file: str
    validation_file: str | None
    output_dir: str
    """`…/jobs/<id>/<epoch>`, the only folder that this attempt writes to."""
    resume_from: str | None
    """An earlier attempt's verified checkpoint to resume from; None to start at the first step."""
    checkpoint_seconds: float
    """The longest time between checkpoints, unless saving them takes long (`checkpoint_timer`)."""
    failure_seconds: float = 1e9
    """How long the job's attempts have lasted on average until they died; very long if none has died."""
    seed: int
    halvings: int
    """How often the limits of a micro-batch were halved, because larger ones ran out of memory."""
    hyperparameters: Hyperparameters
    template: TemplateOptions = TemplateOptions()
    """What the base model's catalogue entry changes in its chat template."""
    method: str = DEFAULT_METHOD
    """A name in `app.fine_tuning.methods`."""
    parent: str | None = None
    """The folder of the adapter that training continues from; None for a fresh adapter."""


class StopJob(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Save a checkpoint of one job and stop it; the others go on."""

    attempt: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a trainer says about an attempt."""

    attempt: str = ""
    """As in its `TrainingSpec`; a trainer that has one job at a time need not say."""


class Started(Message, frozen=True, kw_only=True, tag="started"):
    """The files are read and the model is loaded; training is about to begin."""

    total_steps: int
    examples: int
    tokens_per_epoch: int
    trainable_parameters: int
    device: str
    resumed_step: int
    """The step of the checkpoint that the attempt resumes from; 0 without one."""
    resident_memory_bytes: int = 0
    """Memory of the base model and of the process around it."""
    value_bytes: int = 2
    """The size of a weight or an activation in the type that the device computes in."""
    training: Work = Work()
    """The work of all the job's optimizer steps."""
    evaluation: Work = Work()
    """The work of all its evaluations on validation examples."""
    largest: Work = Work()
    """The largest micro-batch."""
    layout: Layout = "packed"
    layout_reason: str = ""
    """Why the batches have this layout; continues the word "because"."""
    has_experts: bool = False
    """Whether the base is a mixture of experts, which are not adapted."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, because they would not fit otherwise."""


class Step(Message, frozen=True, kw_only=True, tag="step"):
    """An optimizer step was taken."""

    metrics: Metrics
    epoch: int
    """Counts from 1."""
    learning_rate: float
    tokens: int
    """Tokens trained on since the start of the job, without padding."""
    elapsed_seconds: float
    """Time spent in steps; the steps of earlier attempts are counted at this attempt's pace."""


class Working(Message, frozen=True, kw_only=True, tag="working"):
    """The trainer is alive, in the middle of something that takes long."""


class Saved(Message, frozen=True, kw_only=True, tag="saved"):
    """A checkpoint folder is complete and durable: an attempt can resume from it at `step`."""

    step: int
    path: str


class Checkpoint(Message, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint folder that was saved has a PEFT adapter that is to be served."""

    metrics: Metrics
    path: str


class Noted(Message, frozen=True, kw_only=True, tag="noted"):
    """Something for the job's log."""

    message: str


class Warned(Message, frozen=True, kw_only=True, tag="warned"):
    """Something happened that the job's owner should know; training continues."""

    message: str


class Stopped(Message, frozen=True, kw_only=True, tag="stopped"):
    """Training stopped before its end, and can be resumed from the newest checkpoint."""

    step: int
    """How far it was; 0 if the steps since the newest checkpoint, if any, are lost."""
    cause: StopCause = "request"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The trained model's log-probabilities on one training example, to compare the served model with."""

    example: int
    """The example's number in the training file, from 0."""
    input_ids: list[int]
    """The tokens of one of the example's sequences (`Method.compared`), up to its last answer or further."""
    targets: list[int]
    """Positions in `input_ids` of the tokens that were trained on."""
    trained: list[float]
    """The log-probability of each target, in nats."""
    base: list[float]
    """The same log-probabilities by the base model alone."""


class Finished(Message, frozen=True, kw_only=True, tag="finished"):
    """The job is trained; the folder `path` holds the adapter to publish."""

    path: str
    trained_tokens: int
    elapsed_seconds: float
    """From this attempt's `Started` to its last step."""
    peak_memory_bytes: int
    """The job's peak where the system can tell, otherwise the peak since the trainer started."""
    samples: list[Sample] = []


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The job cannot be trained; the message tells the user what to do.

    Some codes are not the job's fault: after `storage_full` it waits for room, after `storage_unusable` and
    `internal_error` it is retried.
    """

    code: str
    message: str
    param: str | None = None


def out_of_memory(hp: Hyperparameters) -> Failed:
    """The failure of a job of which not even a single example fits in memory."""
    return Failed(
        code="out_of_memory",
        message="The training ran out of memory. Lower max_length, which bounds the longest example "
        f"({hp.max_length} tokens), batch_size or lora_rank, or train on a machine with more memory.",
    )


Progress = Started | Step | Working | Saved | Checkpoint | Noted | Warned | Stopped | Finished | Failed
