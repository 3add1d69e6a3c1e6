"""How a job's examples are cut into pieces, and what it will compute of them, counted without tensors.

An example is one sequence of tokens, or several that belong together (both answers of a pair). The trainer
cuts by these functions and packs what it gets in `workers.training.dataset`; a test holds what that computes
against what is counted here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import TypeVar

import msgspec

from app.datasets.chat_template import TokenizedExample

Example = TypeVar("Example")
Sequences = tuple[TokenizedExample, ...]
"""Of one example."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one forward pass may hold, so that memory stays bounded whatever the file holds."""

    tokens: int
    """Sequences times the longest of them."""
    targets: int
    """Rows of logits, each as wide as the vocabulary."""

    @classmethod
    def of_device(cls, *, is_gpu: bool, vocabulary: int) -> Limits:
        """Large enough to keep the device busy, small enough that activations stay beside the weights."""
        tokens, logits = (2**14, 2**28) if is_gpu else (2**11, 2**25)
        return cls(tokens=tokens, targets=logits // vocabulary)

    @classmethod
    def holding(cls, examples: Sequence[Sequences]) -> Limits:
        """What one piece that holds them all takes."""
        longest = max(map(length, examples), default=0)
        return cls(tokens=sum(map(len, examples)) * longest, targets=sum(map(count_targets, examples)))

    def within(self, other: Limits) -> Limits:
        """The narrower of both."""
        return Limits(min(self.tokens, other.tokens), min(self.targets, other.targets))

    def halved(self, times: int = 1) -> Limits:
        """For half the memory, that many times; one example at least is always computed."""
        return Limits(tokens=max(1, self.tokens >> times), targets=max(1, self.targets >> times))


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a computation takes, in counts that no device changes; the names are also the stored ones."""

    steps: float = 0
    """Optimizer steps."""
    pieces: float = 0
    """Forward and backward passes."""
    tokens: float = 0
    """Rows that pass through every layer: shared tokens once, nothing after the last target."""
    rows: float = 0
    """Rows of attention: as `tokens`, and those that fill up shorter sequences."""
    scores: float = 0
    """Queries times keys of one head in one layer, filling included."""
    targets: float = 0
    """Rows of logits."""
    checkpoints: float = 0
    """That are saved to be served."""

    def times(self, factor: float) -> Work:
        """So many times the work."""
        return Work(**{name: getattr(self, name) * factor for name in self.__struct_fields__})


@dataclass(frozen=True, slots=True)
class JobWork:
    """What a whole job takes."""

    training: Work
    """Of its optimizer steps."""
    looking: Work
    """Forward passes alone, over validation examples."""
    pieces: list[Work]
    """Of one epoch."""

    @property
    def largest(self) -> Work:
        """The piece that decides how much memory is needed."""
        return max(self.pieces, key=lambda piece: piece.tokens + piece.targets / 3, default=Work())


def work_of_job(
    training: Sequence[Sequences],
    validation: Sequence[Sequences],
    limits: Limits,
    *,
    n_epochs: int,
    batch_size: int,
    checkpoint_steps: int | None,
    seed: int,
) -> JobWork:
    """Counted over the first epoch's batches: the others are the same examples in another order."""
    limits = limits.within(Limits.holding(sorted(training, key=length)[-batch_size:]))
    batches = epoch_batches(len(training), batch_size, seed, 1)
    in_pieces = [
        work for batch in batches for work in work_by_piece([training[number] for number in batch], limits)
    ]
    steps = len(batches) * n_epochs
    looks, checkpoints = _milestones(steps, len(batches), checkpoint_steps)
    whole = total(work_by_piece(validation, limits))
    some = min(1.0, batch_size / len(validation)) if validation else 0.0
    beside = Work(steps=steps, checkpoints=checkpoints)
    return JobWork(
        training=total([total(in_pieces).times(n_epochs), beside]),
        looking=whole.times(n_epochs + looks * some),
        pieces=in_pieces,
    )


@lru_cache(maxsize=1)
def epoch_batches(examples: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches of example numbers, a function of the seed and the epoch only.

    Shuffled freely, not grouped by length: packing leaves no padding to save.
    """
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - order, not secrecy
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]


def cut(
    examples: Iterable[Example], limits: Limits, sequences: Callable[[Example], Sequences]
) -> Iterator[list[Example]]:
    """The examples in as few pieces as the limits allow, examples of like length together.

    An example that exceeds the limits by itself is a piece of its own: a pair is never cut.
    """
    piece: list[Example] = []
    count = targets = 0
    for example in sorted(examples, key=lambda example: length(sequences(example))):
        parts = sequences(example)
        tokens, more = (count + len(parts)) * length(parts), count_targets(parts)
        if piece and (tokens > limits.tokens or targets + more > limits.targets):
            yield piece
            piece, count, targets = [], 0, 0
        piece.append(example)
        count += len(parts)
        targets += more
    if piece:
        yield piece


def length(example: Sequences) -> int:
    """Tokens of its longest sequence."""
    return max(len(part.input_ids) for part in example)


def count_targets(example: Sequences) -> int:
    """Tokens to predict."""
    return sum(sum(part.target_mask[1:]) for part in example)


def work_by_piece(examples: Sequence[Sequences], limits: Limits) -> list[Work]:
    """What each of the pieces takes that the examples are cut into."""
    return [work_of_piece(piece) for piece in cut(examples, limits, lambda example: example)]


def work_of_piece(piece: Sequence[Sequences]) -> Work:
    """What one forward and backward pass over these examples takes."""
    sequences = [part for example in piece for part in example]
    inputs = [part.input_ids[: last_target(part)] for part in sequences]
    # One token of each is its own, even of two that are equal.
    shared = min(common_prefix(inputs), min(map(len, inputs)) - 1) if len(inputs) > 1 else 0
    longest = max(map(len, inputs)) - shared
    tokens, before = shared, inputs[0][:shared]
    for sequence in inputs:  # what it has in common with the one before it is there already
        begun = min(shared + common_prefix([before[shared:], sequence[shared:]]), len(sequence) - 1)
        tokens += len(sequence) - begun
        before = sequence
    return Work(
        pieces=1,
        tokens=tokens,
        rows=shared + len(inputs) * longest,
        scores=shared * shared + len(inputs) * longest * (shared + longest),
        targets=sum(map(count_targets, piece)),
    )


def total(works: Iterable[Work]) -> Work:
    """All of it."""
    parts = list(works)
    return Work(**{name: sum(getattr(part, name) for part in parts) for name in Work.__struct_fields__})


def last_target(sequence: TokenizedExample) -> int:
    """The place of the last token to predict: nothing from there on needs computing."""
    return len(sequence.target_mask) - 1 - sequence.target_mask[::-1].index(True)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all the sequences begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def _milestones(steps: int, steps_per_epoch: int, checkpoint_steps: int | None) -> tuple[int, int]:
    """How often a job looks at some validation examples, and saves a checkpoint that is served."""
    every, often = max(5, math.ceil(steps / 10)), checkpoint_steps or steps_per_epoch
    servable = {*range(steps_per_epoch, steps + 1, steps_per_epoch), *range(often, steps + 1, often)}
    return len(servable.union(range(every, steps + 1, every))), len(servable)
