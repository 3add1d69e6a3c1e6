"""Training files as tensors: examples of tokens, and packed batches.

A packed batch is one row without padding. Tokens that all its sequences begin with (the system prompt,
as a rule), or a sequence and the one before it (two answers to one prompt), stand in it once: causal
attention gives them the same hidden states in every sequence, so computing them once is exact, and their
gradients add up by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.datasets.formats import parse_line
from app.datasets.lines import UnreadableFileError, read_lines
from app.datasets.types import ExampleError
from app.fine_tuning import packing
from app.fine_tuning.methods import tokenize
from app.fine_tuning.packing import Limits, common_prefix, last_target


class InvalidExampleError(ValueError):
    """A line that cannot be trained on; the message names it and says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line} {message}")
        self.line = line


@dataclass(slots=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    preferred: TokenizedExample
    other: TokenizedExample
    reference: float | None = None
    """How much likelier the preferred answer was than the other, in nats, before the first step."""


TrainingExample = TokenizedExample | Pair
"""What a line of a training file is to the trainer, by the job's method."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences in one row: the tokens they all share first, then what is each one's own.

    N tokens in the row, T targets, B sequences, P shared tokens, L further tokens of the longest sequence.
    """

    input_ids: Tensor
    """[1, N]"""
    position_ids: Tensor
    """[1, N]: each token's place in its own sequence."""
    predicting: Tensor
    """[T]: the row's tokens whose logits predict the targets."""
    targets: Tensor
    """[T]: token ids."""
    sequence: Tensor
    """[T]: the number of each target's sequence."""
    shared: int
    """P"""
    query_rows: Tensor
    """[B, L]: where each sequence's further tokens stand in the row; past its end, any token."""
    key_rows: Tensor
    """[B, P + L]: the same after the shared tokens."""
    own_places: Tensor
    """[N - P]: where each of the row's further tokens stands in `query_rows`, flattened."""

    def to(self, device: torch.device) -> PackedBatch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in self.__slots__
            if name != "shared"
        }
        return PackedBatch(shared=self.shared, **tensors)


def load_examples(
    path: Path, template: ChatTemplate, max_length: int, method: str = "supervised"
) -> list[TrainingExample]:
    """Every example of a JSONL file, tokenized as the method learns it.

    Raises:
        InvalidExampleError: a line is not an example, or one of another method, is longer than `max_length`
            tokens, or has no target.
    """
    examples: list[TrainingExample] = []
    for number, line in _numbered_lines(path):
        try:
            parts = tokenize(template, method, parse_line(line))
        except ExampleError as error:
            raise InvalidExampleError(number, f"{error.message}.") from error
        for part in parts:
            _check_sequence(number, part, max_length)
        examples.append(parts[0] if len(parts) == 1 else Pair(parts[0], parts[1]))
    if not examples:
        raise InvalidExampleError(1, "has no example: the file is empty.")
    return examples


def _check_sequence(line: int, sequence: TokenizedExample, max_length: int) -> None:
    if len(sequence.input_ids) > max_length:
        raise InvalidExampleError(
            line,
            f"has {len(sequence.input_ids)} tokens, more than max_length ({max_length}). "
            "Shorten or split the example, or raise max_length.",
        )
    # The first token is never predicted, so it cannot be a target.
    if not any(sequence.target_mask[1:]):
        raise InvalidExampleError(
            line,
            f"has {len(sequence.input_ids)} tokens but none to learn from. "
            "Give it an assistant message with content and without weight 0.",
        )


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from read_lines(path)
    except UnreadableFileError as error:
        raise InvalidExampleError(error.line, f"{error.message}.") from error


def micro_batches(examples: Iterable[TrainingExample], limits: Limits) -> Iterator[list[TrainingExample]]:
    """The examples in as few pieces as the limits allow (`packing.cut`)."""
    return packing.cut(examples, limits, sequences)


def sequences(example: TrainingExample) -> tuple[TokenizedExample, ...]:
    """What is computed of it; for a pair both, the preferred first."""
    return (example.preferred, example.other) if isinstance(example, Pair) else (example,)


def length(example: TrainingExample) -> int:
    """In tokens; for a pair, of the longer."""
    return packing.length(sequences(example))


def count_targets(example: TrainingExample) -> int:
    """Tokens to predict."""
    return packing.count_targets(sequences(example))


def limits_of(examples: Iterable[TrainingExample]) -> Limits:
    """What one piece that holds them all takes."""
    return Limits.holding([sequences(example) for example in examples])


def pack(examples: Sequence[TrainingExample]) -> PackedBatch:
    """The examples in one row, their common beginning once; what follows the last target is left out."""
    parts = [part for example in examples for part in sequences(example)]
    inputs = [part.input_ids[: last_target(part)] for part in parts]
    # At least one token of each sequence is its own, even where two are equal.
    shared = min(common_prefix(inputs), min(map(len, inputs)) - 1) if len(inputs) > 1 else 0
    longest = max(map(len, inputs)) - shared

    row = inputs[0][:shared]
    positions = list(range(shared))
    predicting: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    query_rows: list[list[int]] = []
    own_places: list[int] = []
    before, places = inputs[0][:shared], list(range(shared))
    for number, (part, tokens) in enumerate(zip(parts, inputs, strict=True)):
        # What it has in common with the one before it stands in the row already.
        begun = min(shared + common_prefix([before[shared:], tokens[shared:]]), len(tokens) - 1)
        places = [*places[:begun], *range(len(row), len(row) + len(tokens) - begun)]
        for place in range(1, len(tokens) + 1):
            if part.target_mask[place]:
                predicting.append(places[place - 1])
                targets.append(part.input_ids[place])
                sequence.append(number)
        query_rows.append([*places[shared:], *[places[-1]] * (longest + shared - len(tokens))])
        own_places.extend(number * longest + place - shared for place in range(begun, len(tokens)))
        row.extend(tokens[begun:])
        positions.extend(range(begun, len(tokens)))
        before = tokens

    queries = torch.tensor(query_rows)
    return PackedBatch(
        input_ids=torch.tensor([row]),
        position_ids=torch.tensor([positions]),
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        sequence=torch.tensor(sequence),
        shared=shared,
        query_rows=queries,
        key_rows=torch.cat([torch.arange(shared).expand(len(inputs), shared), queries], dim=1),
        own_places=torch.tensor(own_places),
    )
