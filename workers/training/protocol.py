"""What a worker and its trainer child say to each other: one JSON object a line.

The worker writes a `TrainingSpec` to the child's stdin; the child answers with any number of
`Progress` messages and ends each job with exactly one of `Finished`, `Stopped` or `Failed`. SIGTERM asks
it to save a checkpoint and stop. Paths are absolute.
"""

from __future__ import annotations

import msgspec

from app.fine_tuning.packing import Work


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """Every number a training loop needs, already resolved: nothing here is `"auto"`."""

    n_epochs: int
    batch_size: int
    """Examples per optimizer step (the effective batch)."""
    learning_rate: float
    """Peak learning rate, reached after the warm-up."""
    lora_rank: int
    lora_alpha: int | float
    lora_dropout: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    """Tokens; a longer example is an error, never cut."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints that can be served; None: at the end of every epoch alone."""
    beta: float | None = None
    """DPO alone: how dearly the model pays for leaving its reference."""


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """One attempt at a job."""

    job_id: str
    base_model: str
    """The base's name in the catalogue, written into `adapter_config.json`."""
    base_model_dir: str
    training_file: str
    validation_file: str | None
    output_dir: str
    """`…/jobs/<id>/<epoch>`: the only folder that this attempt writes to."""
    resume_from: str | None
    """A checkpoint of an earlier attempt, verified, to go on from."""
    checkpoint_seconds: float
    """Between checkpoints within an epoch."""
    seed: int
    halvings: int
    """How often the pieces that a batch is computed in were halved, because larger ones ran out of memory."""
    hyperparameters: Hyperparameters
    method: str = "supervised"
    """Or `dpo`."""
    parent: str | None = None
    """The folder of the adapter that training goes on from; None: a fresh one."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's checkpoint metrics, and for DPO the rewards; what was not measured at this step is None."""

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


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The files are read and the model is there: what is about to happen."""

    total_steps: int
    examples: int
    tokens_per_epoch: int
    trainable_parameters: int
    device: str
    resumed_step: int
    """The step that the checkpoint was saved at; 0 without one."""
    resident_memory_bytes: int = 0
    """The base model, and what the process needs by itself."""
    value_bytes: int = 2
    """Of a weight or an activation."""
    training: Work = Work()
    """What the whole job takes, and what it takes to look at its validation examples."""
    looking: Work = Work()
    largest: Work = Work()
    """The largest piece of a batch."""


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """After every optimizer step."""

    metrics: Metrics
    epoch: int
    """1-based."""
    learning_rate: float
    tokens: int
    """Tokens seen since the start of the job, padding not counted."""
    elapsed_seconds: float
    """In steps alone; those of earlier attempts are reckoned at this one's pace."""


class Working(msgspec.Struct, frozen=True, kw_only=True, tag="working"):
    """A sign of life in the middle of a step that takes long."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint"):
    """A complete, durable checkpoint folder with a PEFT adapter in it, which is to be served."""

    metrics: Metrics
    path: str


class Warned(msgspec.Struct, frozen=True, kw_only=True, tag="warned"):
    """Something that the job's owner should know; the training goes on."""

    message: str


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """The training stopped as asked; `step` can be resumed from."""

    step: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the trained model makes of one training example, for a comparison with what is served."""

    example: int
    """Its number in the training file, from 0."""
    input_ids: list[int]
    """Of a pair, with the preferred answer."""
    targets: list[int]
    """Places in `input_ids` of the tokens that were learnt."""
    trained: list[float]
    """Log-probability of each target, in nats."""
    base: list[float]
    """The same by the base model alone."""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The job is trained; `path` is the folder of the adapter to publish."""

    path: str
    trained_tokens: int
    elapsed_seconds: float
    peak_memory_bytes: int
    """Of this job, where the system can tell; else since the trainer started."""
    samples: list[Sample] = []


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The job cannot be trained; the message tells the user what to do.

    Some codes are not the job's fault: `storage_full` (it waits for room), `storage_unusable` and
    `internal_error` (it is retried).
    """

    code: str
    message: str
    param: str | None = None


def out_of_memory(hp: Hyperparameters) -> Failed:
    """No piece of a batch is small enough."""
    return Failed(
        code="out_of_memory",
        message="The training ran out of memory. Lower max_length, which bounds the longest example "
        f"({hp.max_length} tokens), batch_size or lora_rank, or train on a machine with more memory.",
    )


Progress = Started | Step | Working | Checkpoint | Warned | Stopped | Finished | Failed
