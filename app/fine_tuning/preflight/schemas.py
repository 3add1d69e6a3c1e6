"""A job that was only asked about, on the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.fine_tuning.schemas import ResolvedHyperparameters

FileParam = Literal["training_file", "validation_file"]


class Finding(BaseModel):
    """Something about one line."""

    file: FileParam
    """Whose line it is; a hold-out's are the training file's."""
    line: int
    """From 1."""
    pointer: str = ""
    """JSON pointer into the line; empty: the whole of it."""
    code: str
    message: str


class Findings(BaseModel):
    """How many there are, and the first of them."""

    total: int = 0
    listed: list[Finding] = []


class Duplicate(BaseModel):
    """An example that is learnt and judged by."""

    training_line: int
    validation_line: int
    kind: Literal["exact", "normalised"]
    """Normalised: the same but for case, spaces, punctuation and the form of characters."""


class Overlap(BaseModel):
    """Validation examples that are in the training file, too."""

    exact: int = 0
    normalised: int = 0
    """Beyond the exact ones."""
    listed: list[Duplicate] = []


class Sample(BaseModel):
    """Which of the examples were tokenized; everything that is counted in tokens is reckoned from them."""

    examples: int
    of: int
    seed: int


class Lengths(BaseModel):
    """Tokens of the training examples."""

    p50: int
    p90: int
    max: int
    limit: int
    """`max_length`: a longer example is refused."""


class HeldOut(BaseModel):
    """The hold-out that the job would make."""

    share: float
    seed: int
    examples: int
    """Left to learn from."""
    held_out: int


class Basis(BaseModel):
    """What an estimate stands on."""

    kind: Literal["measured", "default"]
    """`default`: no job of this base has succeeded on this device; then it is a rough guess."""
    device: str
    jobs: int
    tokens_per_second: float | None
    """Of the measured jobs; examples of another length are faster or slower."""
    measured_at: int | None


class TimeEstimate(BaseModel):
    """From the claim by a worker to the end."""

    seconds: float
    startup_seconds: float
    """Of these, before the first step."""
    tokens_per_second: float
    """That this job is expected to reach."""
    basis: Basis


class MemoryEstimate(BaseModel):
    """Of the trainer, at its peak."""

    peak_bytes: int
    base_model_bytes: int
    """The base model, the process around it, and what it keeps of earlier jobs."""
    adapter_bytes: int
    """Adapter, gradient and optimizer."""
    activation_bytes: int
    """What the largest piece of a batch keeps for its backward pass."""
    device_bytes: int | None
    """What the device has in all; null where it is not known."""
    fits: bool | None
    basis: Basis


class RenderedExample(BaseModel):
    """A training example as the model reads it."""

    line: int
    text: str
    targets: list[tuple[int, int]]
    """Spans of characters, end excluded, that the model learns to write."""


class JobPreflight(BaseModel):
    """What would happen; nothing of it was kept."""

    object: Literal["fine_tuning.job.preflight"] = "fine_tuning.job.preflight"
    ready: bool
    """No example is refused."""
    model: str
    method: dict[str, Any]
    hyperparameters: ResolvedHyperparameters
    training_file: str
    validation_file: str | None
    validation_split: HeldOut | None
    examples: int
    """To learn from."""
    validation_examples: int
    sample: Sample | None
    """Null where every example was tokenized."""
    steps: int
    steps_per_epoch: int
    tokens_per_epoch: int
    target_tokens_per_epoch: int
    lengths: Lengths | None
    truncated_examples: Literal[0] = 0
    """An example is refused, never cut."""
    refused: Findings
    """Examples that the job would fail on, those without a trainable token among them."""
    without_target: Findings
    """Of the refused, those without a trainable token."""
    special_tokens: Findings
    """Texts in an example that the tokenizer takes for a special token."""
    overlap: Overlap | None
    """Null without validation examples."""
    shared_share: float
    """Of the tokens, those that are not computed: shared beginnings, and what follows the last target."""
    padding_share: float
    """Of attention's rows, those that only fill up shorter examples; no other layer computes any."""
    memory: MemoryEstimate
    time: TimeEstimate
    rendered: list[RenderedExample]
