"""How examples are laid out in micro-batches, and how much work computing them takes.

An example is one sequence of tokens, or several that belong together (both answers of a preference pair).
Nothing here needs tensors, so a dry run counts with the same functions that the trainer computes with:
`workers.training.layouts` turns a `PackedRow` or `PaddedRows` into tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import msgspec

from app.datasets.chat_template import TokenizedExample
from app.fine_tuning.schedule import Schedule, epoch_batches
from app.models.token_mixing import Layout

Example = TypeVar("Example")
Sequences = tuple[TokenizedExample, ...]
"""The sequences of one example."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one micro-batch may hold, so that memory stays bounded whatever the file holds."""

    tokens: int
    """The number of sequences times the length of the longest."""
    targets: int
    """Rows of logits, each as wide as the vocabulary."""

    @classmethod
    def of_device(cls, *, is_gpu: bool, vocabulary: int) -> Limits:
        """Large enough to keep the device busy, small enough that activations fit beside the weights."""
        tokens, logits = (2**14, 2**28) if is_gpu else (2**11, 2**25)
        return cls(tokens=tokens, targets=logits // vocabulary)

    @classmethod
    def holding(cls, examples: Sequence[Sequences]) -> Limits:
        """The narrowest limits under which all the examples form one micro-batch."""
        longest = max(map(length, examples), default=0)
        return cls(tokens=sum(map(len, examples)) * longest, targets=sum(map(count_targets, examples)))

    def within(self, other: Limits) -> Limits:
        """The narrower of both."""
        return Limits(min(self.tokens, other.tokens), min(self.targets, other.targets))

    def halved(self, times: int = 1) -> Limits:
        """Limits for half the memory, that many times over. One example always fits."""
        return Limits(tokens=max(1, self.tokens >> times), targets=max(1, self.targets >> times))


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """How much work a computation is, in counts that no device changes; stored with every finished job."""

    steps: float = 0
    """Optimizer steps."""
    micro_batches: float = msgspec.field(default=0, name="pieces")
    """Forward and backward passes."""
    tokens: float = 0
    """Rows that pass through every layer: shared tokens once, nothing after the last target."""
    rows: float = 0
    """Rows of attention, the padding of shorter sequences included."""
    padding: float = 0
    """Rows of attention that are padding. In the padded layout they pass through every other layer, too."""
    scores: float = 0
    """Attention scores of one head in one layer (queries times keys), padding included."""
    targets: float = 0
    """Rows of logits."""
    checkpoints: float = 0
    """Checkpoints that are saved to be served."""
    recomputed: float = 0
    """Those of `tokens` whose activations are computed again in the backward pass instead of being kept."""

    def times(self, factor: float) -> Work:
        """The work, multiplied."""
        return Work(**{name: getattr(self, name) * factor for name in self.__struct_fields__})


@dataclass(frozen=True, slots=True)
class JobWork:
    """How much work a whole job is."""

    training: Work
    """The work of its optimizer steps."""
    evaluation: Work
    """The work of its evaluations on validation examples, which are forward passes alone."""
    micro_batches: list[Work]
    """Every micro-batch of one epoch."""

    @property
    def largest(self) -> Work:
        """The micro-batch that decides how much memory is needed."""
        return max(self.micro_batches, key=lambda each: each.tokens + each.targets / 3, default=Work())

    def recomputing(self) -> JobWork:
        """The same work with activation checkpointing."""

        def recomputed(work: Work) -> Work:
            return msgspec.structs.replace(work, recomputed=work.tokens)

        return JobWork(recomputed(self.training), self.evaluation, [*map(recomputed, self.micro_batches)])


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A micro-batch's sequences in one row without padding.

    The row begins with the tokens that all the sequences share. Each sequence then adds its own tokens, but
    for those that it has in common with the sequence before it (two answers to one prompt): causal attention
    gives them the same hidden states, so computing them once is exact.
    """

    sequences: Sequence[TokenizedExample]
    inputs: Sequence[list[int]]
    """The tokens of each sequence before its last target: nothing from there on needs computing."""
    shared: int
    """The number of tokens that all the sequences share."""
    starts: Sequence[int]
    """The position in each sequence from which on its tokens are added to the row."""

    @classmethod
    def of(cls, examples: Iterable[Sequences]) -> PackedRow:
        """Lay out the examples' sequences in order."""
        sequences, inputs = _inputs(examples)
        # At least one token of each sequence is its own, even where two are equal.
        shared = min(common_prefix(inputs), min(map(len, inputs)) - 1) if len(inputs) > 1 else 0
        starts: list[int] = []
        before = inputs[0][:shared]
        for tokens in inputs:
            starts.append(min(shared + common_prefix([before[shared:], tokens[shared:]]), len(tokens) - 1))
            before = tokens
        return cls(sequences, inputs, shared, starts)

    @property
    def width(self) -> int:
        """The length of the longest sequence after the shared tokens; attention pads the others to it."""
        return max(map(len, self.inputs)) - self.shared

    @property
    def work(self) -> Work:
        """The work of one forward and backward pass over the row."""
        queries = len(self.inputs) * self.width
        tokens = self.shared + sum(map(len, self.inputs)) - sum(self.starts)
        return Work(
            micro_batches=1,
            tokens=tokens,
            rows=self.shared + queries,
            padding=self.shared + queries - tokens,
            scores=self.shared * self.shared + queries * (self.shared + self.width),
            targets=count_targets(self.sequences),
        )


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """A micro-batch's sequences in a row each, padded on the right to the length of the longest."""

    sequences: Sequence[TokenizedExample]
    inputs: Sequence[list[int]]
    """The tokens of each sequence before its last target: nothing from there on needs computing."""

    @classmethod
    def of(cls, examples: Iterable[Sequences]) -> PaddedRows:
        """Lay out the examples' sequences in order."""
        return cls(*_inputs(examples))

    @property
    def width(self) -> int:
        """The length of the longest row."""
        return max(map(len, self.inputs))

    @property
    def work(self) -> Work:
        """The work of one forward and backward pass over the rows."""
        rows = len(self.inputs) * self.width
        return Work(
            micro_batches=1,
            tokens=rows,
            rows=rows,
            padding=rows - sum(map(len, self.inputs)),
            scores=rows * self.width,
            targets=count_targets(self.sequences),
        )


_LAID_OUT: dict[Layout, type[PackedRow] | type[PaddedRows]] = {"packed": PackedRow, "padded": PaddedRows}


def _inputs(examples: Iterable[Sequences]) -> tuple[list[TokenizedExample], list[list[int]]]:
    """Return the examples' sequences, and the tokens of each that need computing."""
    sequences = [part for example in examples for part in example]
    return sequences, [part.input_ids[: last_target(part)] for part in sequences]


def work_of_job(
    training: Sequence[Sequences],
    validation: Sequence[Sequences],
    limits: Limits,
    layout: Layout,
    *,
    n_epochs: int,
    batch_size: int,
    checkpoint_steps: int | None,
    seed: int,
) -> JobWork:
    """Count over the first epoch's batches: the others are the same examples in another order."""
    limits = limits.within(Limits.holding(sorted(training, key=length)[-batch_size:]))
    batches = epoch_batches(len(training), batch_size, seed, 1)
    by_micro_batch = [
        work
        for batch in batches
        for work in work_by_micro_batch([training[number] for number in batch], limits, layout)
    ]
    schedule = Schedule(
        len(training), n_epochs=n_epochs, batch_size=batch_size, checkpoint_steps=checkpoint_steps
    )
    beside = Work(steps=schedule.total_steps, checkpoints=len(schedule.checkpoints))
    share = min(1.0, batch_size / len(validation)) if validation else 0.0
    full_evaluation = total(work_by_micro_batch(validation, limits, layout))
    return JobWork(
        training=total([total(by_micro_batch).times(n_epochs), beside]),
        evaluation=full_evaluation.times(len(schedule.epoch_ends) + len(schedule.evaluations) * share),
        micro_batches=by_micro_batch,
    )


def split_into_micro_batches(
    examples: Iterable[Example], limits: Limits, sequences: Callable[[Example], Sequences]
) -> Iterator[list[Example]]:
    """Yield the examples in as few micro-batches as the limits allow, examples of similar length together.

    An example that exceeds the limits by itself is a micro-batch of its own: a pair is never split.
    """
    micro_batch: list[Example] = []
    count = targets = 0
    for example in sorted(examples, key=lambda example: length(sequences(example))):
        parts = sequences(example)
        tokens, more = (count + len(parts)) * length(parts), count_targets(parts)
        if micro_batch and (tokens > limits.tokens or targets + more > limits.targets):
            yield micro_batch
            micro_batch, count, targets = [], 0, 0
        micro_batch.append(example)
        count += len(parts)
        targets += more
    if micro_batch:
        yield micro_batch


def work_by_micro_batch(examples: Sequence[Sequences], limits: Limits, layout: Layout) -> list[Work]:
    """Return the work of each micro-batch that the examples are cut into."""
    micro_batches = split_into_micro_batches(examples, limits, lambda example: example)
    return [_LAID_OUT[layout].of(micro_batch).work for micro_batch in micro_batches]


def length(example: Sequences) -> int:
    """The number of tokens in the example's longest sequence."""
    return max(len(part.input_ids) for part in example)


def count_targets(sequences: Iterable[TokenizedExample]) -> int:
    """The number of tokens to predict."""
    return sum(sum(part.target_mask[1:]) for part in sequences)


def total(works: Iterable[Work]) -> Work:
    """The sum of all the work."""
    parts = list(works)
    return Work(**{name: sum(getattr(part, name) for part in parts) for name in Work.__struct_fields__})


def last_target(sequence: TokenizedExample) -> int:
    """The position of the sequence's last token to predict."""
    return len(sequence.target_mask) - 1 - sequence.target_mask[::-1].index(True)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all the sequences begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
