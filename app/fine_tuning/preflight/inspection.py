"""The inspection of a job's files before it is trained: every token counted, every refusal found.

It can take minutes, so it runs in a process of its own; everything here can be pickled and knows no database.
"""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from app.datasets import fingerprint
from app.datasets.chat_template import ChatTemplate, TemplateOptions
from app.datasets.formats import parse_line
from app.datasets.request_file import read_request_file
from app.datasets.types import Example, ExampleError, PreferenceExample
from app.fine_tuning.methods import METHODS
from app.fine_tuning.packing import (
    JobWork,
    Limits,
    Sequences,
    count_targets,
    length,
    work_by_micro_batch,
    work_of_job,
)
from app.fine_tuning.preflight.schemas import (
    Duplicate,
    FileParam,
    Finding,
    Findings,
    Overlap,
    RenderedExample,
)
from app.models.token_mixing import TokenMixing, read_config, token_mixing

SAMPLE = 5_000
"""The number of examples that are tokenized; of more, this many are drawn by the seed."""
_LISTED = 20
_RENDERED = 3
Side = Literal["training", "validation"]


@dataclass(frozen=True, slots=True)
class Subject:
    """The files to inspect, and the job that they are inspected for."""

    base_model_dir: Path
    training: Path
    validation: Path | None
    held_out: frozenset[int]
    """Numbers of the training file's lines that are validation examples instead."""
    examples: int
    validation_examples: int
    method: str
    limits: Limits
    n_epochs: int
    batch_size: int
    max_length: int
    checkpoint_steps: int | None
    seed: int
    sample: int = SAMPLE
    template: TemplateOptions = field(default_factory=TemplateOptions)


@dataclass(slots=True)
class Found:
    """What the inspection found."""

    refused: Findings = field(default_factory=Findings)
    without_target: Findings = field(default_factory=Findings)
    special_tokens: Findings = field(default_factory=Findings)
    overlap: Overlap | None = None
    rendered: list[RenderedExample] = field(default_factory=list[RenderedExample])
    sampled: int = 0
    """The number of training examples that were tokenized."""
    lengths: list[int] = field(default_factory=list[int])
    """Lengths of the training examples in tokens, ascending; a pair's is that of its longer sequence."""
    tokens_per_epoch: int = 0
    targets_per_epoch: int = 0
    work: JobWork | None = None
    """None if no example can be trained on."""
    mixing: TokenMixing | None = None
    """The layout of the micro-batches; None if no example can be trained on."""


def inspect(subject: Subject) -> Found:
    """Inspect both files, the validation examples first."""
    return _Inspector(subject).inspect()


@dataclass(frozen=True, slots=True)
class _Place:
    """The line of an example, and whether it is trained on or validated with."""

    side: Side
    file: FileParam
    line: int


class _Inspector:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._template = ChatTemplate.load(subject.base_model_dir, subject.template)
        self._special = re.compile("|".join(map(re.escape, self._template.special_texts)) or r"(?!)")
        self._found = Found()
        self._exact: dict[bytes, int] = {}
        self._normalised: dict[bytes, int] = {}

    def inspect(self) -> Found:
        subject, found = self._subject, self._found
        if subject.validation_examples:
            found.overlap = Overlap()
        validation, _ = self._read("validation", subject.validation_examples)
        training, longest = self._read("training", subject.examples)
        found.sampled = min(subject.examples, subject.sample)
        found.lengths = sorted(map(length, training))
        if not training:
            return found
        scale = subject.examples / found.sampled
        tokens = sum(len(part.input_ids) for example in training for part in example)
        found.tokens_per_epoch = round(tokens * scale)
        targets = sum(map(count_targets, training))
        found.targets_per_epoch = round(targets * scale)
        everything = [*training, *longest, *validation]
        found.mixing = token_mixing(read_config(subject.base_model_dir), max(map(length, everything)))
        layout = found.mixing.layout
        work = work_of_job(
            training,
            validation,
            subject.limits,
            layout,
            n_epochs=subject.n_epochs,
            batch_size=subject.batch_size,
            checkpoint_steps=subject.checkpoint_steps,
            seed=subject.seed,
        )
        sampled = max(1, min(subject.validation_examples, subject.sample))
        found.work = JobWork(
            work.training.times(scale),
            work.evaluation.times(subject.validation_examples / sampled),
            [*work.micro_batches, *work_by_micro_batch(longest, subject.limits, layout)],
        )
        return found

    def _read(self, side: Side, count: int) -> tuple[list[Sequences], list[Sequences]]:
        """Read the drawn examples of one side and, unless all were drawn, the longest of the others."""
        usable: list[Sequences] = []
        longest: list[tuple[int, int, FileParam, bytes]] = []
        drawn = self._drawn(count)
        for ordinal, (file, number, line) in enumerate(self._lines(side)):
            is_drawn = drawn is None or ordinal in drawn
            if not is_drawn:
                heapq.heappush(longest, (len(line), -number, file, line))
                if len(longest) > self._subject.batch_size:
                    heapq.heappop(longest)
            if is_drawn or self._found.overlap is not None:
                place = _Place(side, file, number)
                example = self._parse(place, line)
                if example is not None and self._found.overlap is not None:
                    self._compare(place, example, self._found.overlap)
                if example is not None and is_drawn and (tokens := self._tokenize(place, example)):
                    usable.append(tokens)
        extreme: list[Sequences] = []
        for _, number, file, line in longest:
            place = _Place(side, file, -number)
            example = self._parse(place, line)
            if example is not None and (tokens := self._tokenize(place, example)):
                extreme.append(tokens)
        return usable, extreme

    def _drawn(self, count: int) -> set[int] | None:
        """Draw the ordinals of the examples that are tokenized; None for all."""
        if count <= self._subject.sample:
            return None
        return set(random.Random(self._subject.seed).sample(range(count), self._subject.sample))  # noqa: S311

    def _lines(self, side: Side) -> Iterator[tuple[FileParam, int, bytes]]:
        subject = self._subject
        if side == "training":
            for number, line in read_request_file(subject.training, param="training_file"):
                if number not in subject.held_out:
                    yield "training_file", number, line
        elif subject.validation is not None:
            for number, line in read_request_file(subject.validation, param="validation_file"):
                yield "validation_file", number, line
        else:
            for number, line in read_request_file(subject.training, param="training_file"):
                if number in subject.held_out:
                    yield "training_file", number, line

    def _parse(self, place: _Place, line: bytes) -> Example | None:
        try:
            return parse_line(line)
        except ExampleError as error:
            _note(self._found.refused, place, error.code, error.message, error.pointer)
            return None

    def _tokenize(self, place: _Place, example: Example) -> Sequences | None:
        """Return the example's sequences if it can be trained on."""
        found, limit = self._found, self._subject.max_length
        for pointer, token in self._special_tokens(example):
            message = f"has the text '{token}', which the model reads as a special token"
            _note(found.special_tokens, place, "special_token", message, pointer)
        try:
            sequences = METHODS[self._subject.method].tokenize(self._template, example)
        except ExampleError as error:
            _note(found.refused, place, error.code, error.message, error.pointer)
            return None
        count = max(len(tokens.input_ids) for tokens in sequences)
        if count > limit:
            _note(found.refused, place, "example_too_long", f"has {count:,} tokens; at most {limit:,} fit")
            return None
        if not all(any(tokens.target_mask[1:]) for tokens in sequences):
            for findings in (found.refused, found.without_target):
                _note(findings, place, "nothing_to_learn", f"has {count} tokens but none to learn from")
            return None
        if place.side == "training" and len(found.rendered) < _RENDERED:
            shown = example.chats()[0] if isinstance(example, PreferenceExample) else example
            found.rendered += [
                RenderedExample(line=place.line, text=text, targets=targets)
                for text, targets in self._template.render_with_targets(shown)
            ]
        return sequences

    def _compare(self, place: _Place, example: Example, overlap: Overlap) -> None:
        """Remember a validation example, or look a training example up among those remembered."""
        exact, normalised = fingerprint.exact(example), fingerprint.normalised(example)
        if place.side == "validation":
            self._exact.setdefault(exact, place.line)
            self._normalised.setdefault(normalised, place.line)
            return
        known = self._exact.get(exact)
        kind = "normalised" if known is None else "exact"
        known = self._normalised.get(normalised) if known is None else known
        if known is None:
            return
        overlap.exact += kind == "exact"
        overlap.normalised += kind == "normalised"
        if len(overlap.listed) < _LISTED:
            overlap.listed.append(Duplicate(training_line=place.line, validation_line=known, kind=kind))

    def _special_tokens(self, example: Example) -> Iterator[tuple[str, str]]:
        for pointer, text in _texts(msgspec.to_builtins(example)):
            for match in self._special.finditer(text):
                yield pointer, match.group()


def _note(findings: Findings, place: _Place, code: str, message: str, pointer: str = "") -> None:
    findings.total += 1
    if len(findings.listed) < _LISTED:
        finding = Finding(file=place.file, line=place.line, pointer=pointer, code=code, message=message)
        findings.listed.append(finding)


def _texts(value: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in a JSON value with its pointer."""
    if isinstance(value, str):
        yield pointer, value
    elif isinstance(value, dict):
        for name, part in value.items():  # pyright: ignore[reportUnknownVariableType]
            escaped = str(name).replace("~", "~0").replace("/", "~1")  # pyright: ignore[reportUnknownArgumentType]
            yield from _texts(part, f"{pointer}/{escaped}")
    elif isinstance(value, list):
        for place, part in enumerate(value):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from _texts(part, f"{pointer}/{place}")
