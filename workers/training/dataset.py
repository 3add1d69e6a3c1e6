"""Training files as tensors: examples of tokens, the order they are learnt in, and packed batches.

A packed batch is one row without padding. Tokens that all its examples begin with (the system prompt,
as a rule) stand in it once: causal attention gives them the same hidden states in every example, so
computing them once is exact, and their gradients add up by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from app.chat_template import ChatTemplate, TokenizedExample
from app.files.examples import ExampleError, parse_line


class InvalidExampleError(ValueError):
    """A line that cannot be trained on; the message names it and says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line} {message}")
        self.line = line


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one forward pass may hold, so that memory stays bounded whatever the file holds."""

    tokens: int
    """Examples times the longest of them."""
    targets: int
    """Rows of logits, each as wide as the vocabulary."""

    def within(self, other: BatchLimits) -> BatchLimits:
        """The narrower of both."""
        return BatchLimits(min(self.tokens, other.tokens), min(self.targets, other.targets))

    def halved(self, times: int = 1) -> BatchLimits:
        """For half the memory, that many times; one example at least is always computed."""
        return BatchLimits(tokens=max(1, self.tokens >> times), targets=max(1, self.targets >> times))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Examples in one row: the tokens they share first, then what is each one's own.

    N tokens in the row, T targets, B examples, P shared tokens, L own tokens of the longest example.
    """

    input_ids: Tensor
    """[1, N]"""
    position_ids: Tensor
    """[1, N]: each token's place in its own example."""
    predicting: Tensor
    """[T]: the row's tokens whose logits predict the targets."""
    targets: Tensor
    """[T]: token ids."""
    shared: int
    """P"""
    query_rows: Tensor
    """[B, L]: where each example's own tokens stand in the row; past an example's end, any token."""
    key_rows: Tensor
    """[B, P + L]: the same after the shared tokens."""
    own_places: Tensor
    """[N - P]: where each of the row's own tokens stands in `query_rows`, flattened."""

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


def load_examples(path: Path, template: ChatTemplate, max_length: int) -> list[TokenizedExample]:
    """Every example of a JSONL file, tokenized.

    Raises:
        InvalidExampleError: a line is not an example, is longer than `max_length` tokens, or has no target.
    """
    examples: list[TokenizedExample] = []
    # On b"\n" only: str.splitlines() would also cut at U+2028 inside a string.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            example = template.tokenize(parse_line(line))
        except ExampleError as error:
            raise InvalidExampleError(number, f"{error.message}.") from error
        if len(example.input_ids) > max_length:
            raise InvalidExampleError(
                number,
                f"has {len(example.input_ids)} tokens, more than max_length ({max_length}). "
                "Shorten or split the example, or raise max_length.",
            )
        # The first token is never predicted, so it cannot be a target.
        if not any(example.target_mask[1:]):
            raise InvalidExampleError(
                number,
                f"has {len(example.input_ids)} tokens but none to learn from. "
                "Give it an assistant message with content and without weight 0.",
            )
        examples.append(example)
    if not examples:
        raise InvalidExampleError(1, "has no example: the file is empty.")
    return examples


@lru_cache(maxsize=1)
def epoch_batches(examples: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches of example numbers, a function of the seed and the epoch only.

    Shuffled freely, not grouped by length: packing leaves no padding to save.
    """
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - order, not secrecy
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]


def micro_batches(examples: Sequence[TokenizedExample], limits: BatchLimits) -> Iterator[PackedBatch]:
    """The examples in as few packed batches as the limits allow, examples of like length together.

    An example that exceeds the limits by itself gets a batch of its own.
    """
    group: list[TokenizedExample] = []
    targets = 0
    for example in sorted(examples, key=length):
        more = sum(example.target_mask)
        tokens = (len(group) + 1) * len(example.input_ids)
        if group and (tokens > limits.tokens or targets + more > limits.targets):
            yield pack(group)
            group, targets = [], 0
        group.append(example)
        targets += more
    if group:
        yield pack(group)


def length(example: TokenizedExample) -> int:
    """In tokens."""
    return len(example.input_ids)


def limits_of(examples: Sequence[TokenizedExample]) -> BatchLimits:
    """What one piece that holds them all takes."""
    return BatchLimits(
        tokens=len(examples) * max(map(length, examples), default=0),
        targets=sum(sum(example.target_mask) for example in examples),
    )


def pack(examples: Sequence[TokenizedExample]) -> PackedBatch:
    """The examples in one row, their common beginning once; what follows the last target is left out."""
    ends = [last_target(example) for example in examples]
    inputs = [example.input_ids[:end] for example, end in zip(examples, ends, strict=True)]
    # At least one token of each example is its own, even where two examples are equal.
    shared = min(common_prefix(inputs), min(map(len, inputs)) - 1) if len(inputs) > 1 else 0
    longest = max(map(len, inputs)) - shared

    row = inputs[0][:shared]
    positions = list(range(shared))
    predicting: list[int] = []
    targets: list[int] = []
    query_rows: list[list[int]] = []
    own_places: list[int] = []
    for number, (example, tokens) in enumerate(zip(examples, inputs, strict=True)):
        start = len(row) - shared  # where token 0 would stand, were the shared ones repeated
        for place in range(1, len(tokens) + 1):
            if example.target_mask[place]:
                predicting.append(place - 1 if place <= shared else start + place - 1)
                targets.append(example.input_ids[place])
        own = len(tokens) - shared
        query_rows.append([*range(len(row), len(row) + own), *[len(row)] * (longest - own)])
        own_places.extend(range(number * longest, number * longest + own))
        row.extend(tokens[shared:])
        positions.extend(range(shared, len(tokens)))

    queries = torch.tensor(query_rows)
    return PackedBatch(
        input_ids=torch.tensor([row]),
        position_ids=torch.tensor([positions]),
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        shared=shared,
        query_rows=queries,
        key_rows=torch.cat([torch.arange(shared).expand(len(inputs), shared), queries], dim=1),
        own_places=torch.tensor(own_places),
    )


def last_target(example: TokenizedExample) -> int:
    """The place of the last token to predict: nothing from there on needs computing."""
    return len(example.target_mask) - 1 - example.target_mask[::-1].index(True)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all the sequences begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
