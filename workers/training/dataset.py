"""Training files as tensors: tokenized examples, and packed batches.

A packed batch is one row without padding. Tokens that all its sequences begin with (usually the system
prompt), or that a sequence has in common with the one before it (two answers to one prompt), are in it once:
causal attention gives them the same hidden states in every sequence, so computing them once is exact, and
their gradients add up by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.datasets.formats import parse_line
from app.datasets.lines import UnreadableFileError, read_lines
from app.datasets.types import ExampleError
from app.fine_tuning import packing
from app.fine_tuning.methods import DEFAULT_METHOD, METHODS
from app.fine_tuning.packing import Layout, Limits


class InvalidExampleError(ValueError):
    """A line cannot be trained on; the message names it and says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line} {message}")
        self.line = line


@dataclass(slots=True)
class Pair:
    """Two answers to one prompt, of which one is preferred."""

    preferred: TokenizedExample
    non_preferred: TokenizedExample
    reference_logratio: float | None = None
    """The preferred answer's log-probability minus the other's before the first step, in nats."""


TrainingExample = TokenizedExample | Pair
"""A line of a training file as the trainer computes it; which of the two, the job's method decides."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences in one row: first the tokens that they all share, then each one's own (`packing.Layout`).

    There are N tokens in the row, T targets, B sequences, P shared tokens, and L further tokens in the
    longest sequence.
    """

    input_ids: Tensor
    """[1, N]"""
    position_ids: Tensor
    """[1, N]: each token's position in its own sequence."""
    predicting: Tensor
    """[T]: places in the row of the tokens whose logits predict the targets."""
    targets: Tensor
    """[T]: token ids."""
    sequence: Tensor
    """[T]: the number of each target's sequence."""
    shared: int
    """P"""
    query_rows: Tensor
    """[B, L]: places in the row of each sequence's further tokens; past its end, of any token."""
    key_rows: Tensor
    """[B, P + L]: places of the shared tokens, then those of `query_rows`."""
    own_places: Tensor
    """[N - P]: the index in the flattened `query_rows` of each of the row's further tokens."""

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in self.__slots__
            if name != "shared"
        }
        return PackedBatch(shared=self.shared, **tensors)


def load_examples(
    path: Path, template: ChatTemplate, max_length: int, method: str = DEFAULT_METHOD
) -> list[TrainingExample]:
    """Read every example of a JSONL file, tokenized as the method needs it.

    Raises:
        InvalidExampleError: a line is not an example of the method, is longer than `max_length` tokens, or
            has no target.
    """
    examples: list[TrainingExample] = []
    for number, line in _numbered_lines(path):
        try:
            parts = METHODS[method].tokenize(template, parse_line(line))
        except ExampleError as error:
            raise InvalidExampleError(number, f"{error.message}.") from error
        for part in parts:
            _check_sequence(number, part, max_length)
        match parts:
            case (sequence,):
                examples.append(sequence)
            case (preferred, other):
                examples.append(Pair(preferred, other))
            case _:
                raise TypeError(f"an example is a sequence or a pair, not {len(parts)} sequences")
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
    """Yield the examples in as few micro-batches as the limits allow."""
    return packing.split_into_micro_batches(examples, limits, sequences)


def sequences(example: TrainingExample) -> tuple[TokenizedExample, ...]:
    """The example's sequences; a pair has two, the preferred answer's first."""
    return (example.preferred, example.non_preferred) if isinstance(example, Pair) else (example,)


def length(example: TrainingExample) -> int:
    """The number of tokens in the example's longest sequence."""
    return packing.length(sequences(example))


def count_targets(example: TrainingExample) -> int:
    """The number of tokens to predict."""
    return packing.count_targets(sequences(example))


def limits_of(examples: Iterable[TrainingExample]) -> Limits:
    """The narrowest limits under which all the examples form one micro-batch."""
    return Limits.holding([sequences(example) for example in examples])


def pack(examples: Iterable[TrainingExample]) -> PackedBatch:
    """Turn the examples' layout into tensors."""
    layout = Layout.of(map(sequences, examples))
    shared, width = layout.shared, layout.width
    row = layout.inputs[0][:shared]
    positions = list(range(shared))
    predicting: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    query_rows: list[list[int]] = []
    own_places: list[int] = []
    places = list(range(shared))
    laid_out = zip(layout.sequences, layout.inputs, layout.starts, strict=True)
    for number, (part, tokens, start) in enumerate(laid_out):
        places = [*places[:start], *range(len(row), len(row) + len(tokens) - start)]
        for place in range(1, len(tokens) + 1):
            if part.target_mask[place]:
                predicting.append(places[place - 1])
                targets.append(part.input_ids[place])
                sequence.append(number)
        query_rows.append([*places[shared:], *[places[-1]] * (width + shared - len(tokens))])
        own_places.extend(number * width + place - shared for place in range(start, len(tokens)))
        row.extend(tokens[start:])
        positions.extend(range(start, len(tokens)))

    queries = torch.tensor(query_rows)
    return PackedBatch(
        input_ids=torch.tensor([row]),
        position_ids=torch.tensor([positions]),
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        sequence=torch.tensor(sequence),
        shared=shared,
        query_rows=queries,
        key_rows=torch.cat([torch.arange(shared).expand(len(query_rows), shared), queries], dim=1),
        own_places=torch.tensor(own_places),
    )
