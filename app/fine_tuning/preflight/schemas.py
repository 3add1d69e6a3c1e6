"""The answer to a dry run, on the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.fine_tuning.schemas import ResolvedHyperparameters
from app.models.token_mixing import Layout

FileParam = Literal["training_file", "validation_file"]


class Finding(BaseModel):
    """Something that was found in one line."""

    file: FileParam
    """The file that the line is in; a hold-out's lines are in the training file."""
    line: int
    """The line's number, from 1."""
    pointer: str = ""
    """A JSON pointer into the line; empty for the whole line."""
    code: str
    message: str


class Findings(BaseModel):
    """The number of findings of a kind, and the first of them."""

    total: int = 0
    listed: list[Finding] = []


class Duplicate(BaseModel):
    """An example that is in the training data and in the validation data."""

    training_line: int
    validation_line: int
    kind: Literal["exact", "normalised"]
    """`normalised`: equal but for case, spaces, punctuation and the Unicode form of characters."""


class Overlap(BaseModel):
    """Validation examples that are in the training data, too."""

    exact: int = 0
    normalised: int = 0
    """Duplicates after normalization, without the exact ones."""
    listed: list[Duplicate] = []


class Sample(BaseModel):
    """The examples that were tokenized, from which everything that is counted in tokens is extrapolated."""

    examples: int
    of: int
    seed: int


class Lengths(BaseModel):
    """Lengths of the training examples, in tokens."""

    p50: int
    p90: int
    max: int
    limit: int
    """The job's `max_length`; a longer example is refused."""


class HeldOut(BaseModel):
    """The hold-out that the job would make."""

    share: float
    seed: int
    examples: int
    """Examples left to train on."""
    held_out: int


class Basis(BaseModel):
    """What an estimate is based on."""

    kind: Literal["measured", "default"]
    """`default` is a rough guess, because no job of this base has succeeded on this device."""
    device: str
    jobs: int
    tokens_per_second: float | None
    """Throughput of the measured jobs; examples of another length are faster or slower."""
    measured_at: int | None


class TimeEstimate(BaseModel):
    """The estimated time from a worker's claim to the job's end."""

    seconds: float
    startup_seconds: float
    """The part of it before the first step."""
    tokens_per_second: float
    """The expected throughput of this job."""
    basis: Basis


class MemoryEstimate(BaseModel):
    """The estimated memory of the trainer at its peak; of several GPUs, that of each."""

    peak_bytes: int
    base_model_bytes: int
    """The base model, the process around it, and what earlier jobs left."""
    quantization: str
    """How the base model's linear layers are stored: `nf4`, or `none`."""
    adapter_bytes: int
    """The adapter, its gradient and the optimizer's state."""
    activation_bytes: int
    """What the largest micro-batch keeps for its backward pass."""
    activation_checkpointing: bool
    """Whether most activations are computed again in the backward pass, because they would not fit."""
    device_bytes: int | None
    """The device's total memory; null if unknown."""
    fits: bool | None
    basis: Basis


class RenderedExample(BaseModel):
    """A training example as the model reads it, or one of the sequences that it becomes."""

    line: int
    text: str
    targets: list[tuple[int, int]]
    """Spans of characters, end excluded, that the model learns to write."""


class JobPreflight(BaseModel):
    """What the job would do; nothing of the request was kept."""

    object: Literal["fine_tuning.job.preflight"] = "fine_tuning.job.preflight"
    ready: bool
    """Whether no example is refused."""
    waits: str | None
    """Why the job would wait for a worker with more GPUs; null if one offers enough, or none is running."""
    model: str
    method: dict[str, Any]
    hyperparameters: ResolvedHyperparameters
    training_file: str
    validation_file: str | None
    validation_split: HeldOut | None
    examples: int
    """Examples to train on."""
    validation_examples: int
    sample: Sample | None
    """Null if every example was tokenized."""
    steps: int
    steps_per_epoch: int
    tokens_per_epoch: int
    target_tokens_per_epoch: int
    lengths: Lengths | None
    truncated_examples: Literal[0] = 0
    """Always 0: an example that is too long is refused, never cut."""
    refused: Findings
    """Examples that the job would fail on, including those without a token to train on."""
    without_target: Findings
    """The refused examples without a token to train on."""
    special_tokens: Findings
    """Texts in examples that the tokenizer reads as a special token."""
    overlap: Overlap | None
    """Null without validation examples."""
    shared_share: float
    """The share of tokens that need no computing: shared prefixes, and what follows the last target."""
    padding_share: float
    """The share of attention's rows that pad shorter examples. In the packed layout no other layer computes
    padding; in the padded layout all do."""
    layout: Layout | None
    """Whether examples are packed into rows without padding, or padded in rows of their own; null if none was
    tokenized. The trainer pads where its self-test finds that packing would be wrong."""
    layout_reason: str | None
    """Why the examples are laid out like that; continues the word "because"."""
    memory: MemoryEstimate
    time: TimeEstimate
    rendered: list[RenderedExample]
