"""Training files as tokenized examples, and the micro-batches that they are computed in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.datasets.formats import parse_line
from app.datasets.lines import UnreadableFileError, read_lines
from app.datasets.types import ExampleError
from app.fine_tuning import packing
from app.fine_tuning.methods import DEFAULT_METHOD, METHODS
from app.fine_tuning.packing import Limits, Sequences


class InvalidExampleError(ValueError):
    """A line cannot be trained on; the message names it and says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line} {message}")
        self.line = line


@dataclass(slots=True)
class TrainingExample:
    """A line of a training file as the trainer computes it."""

    sequences: Sequences
    """The sequences that the job's method makes of the line. Those of a preference pair are the preferred
    answer and the other one, each after the prompt."""
    reference_logratio: float | None = None
    """The preferred answer's log-probability minus the other's before the first step, in nats; None where
    the method needs no reference, or until it is computed."""

    @property
    def length(self) -> int:
        """The number of tokens in the longest sequence."""
        return packing.length(self.sequences)

    @property
    def targets(self) -> int:
        """The number of tokens to predict."""
        return packing.count_targets(self.sequences)


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
        examples.append(TrainingExample(parts))
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
    return packing.split_into_micro_batches(examples, limits, lambda example: example.sequences)


def limits_of(examples: Iterable[TrainingExample]) -> Limits:
    """The narrowest limits under which all the examples form one micro-batch."""
    return Limits.holding([example.sequences for example in examples])
