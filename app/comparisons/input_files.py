"""Are the files of a comparison fit for it? Read in a child process: they may be large."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.comparisons.few_shot import count_examples
from app.comparisons.graders.registry import parse_grader
from app.comparisons.questions import Question, read_question_keys, read_questions, same_question_key
from app.core.errors import InvalidRequestError

FIT_SECONDS = 60.0
"""What holding every reference against its grader may take."""
MAX_QUESTIONS = 5_000
"""In one file."""


class ExamplePool(msgspec.Struct, frozen=True):
    """A file that few-shot examples are drawn from."""

    path: Path
    examples: int
    """That it must have."""
    candidate: str
    """The field of the request that names it."""


class InputFiles(msgspec.Struct, frozen=True):
    """What a request to compare names, and what it must be fit for."""

    held_out: Path
    grader: Any
    general: Path | None
    general_grader: Any
    training: dict[str, Path]
    """By id: held-out questions that are in one of them are left out."""
    pools: list[ExamplePool]


class ValidatedFiles(msgspec.Struct, frozen=True):
    """What is to be asked."""

    questions: list[Question]
    general: list[Question]
    excluded: list[dict[str, Any]]
    """As `app.comparisons.models.Comparison.excluded`."""


def validate_files(files: InputFiles) -> ValidatedFiles:
    """Reads and checks them all, whatever the graders make of them left out: see `check_graders_fit`.

    Raises:
        InvalidRequestError: one is not what it must be, or no question is left.
    """
    questions, excluded = _without_overlap(_read(files.held_out, "file"), files.training)
    general = _read(files.general, "regression_file") if files.general is not None else []
    for pool in files.pools:
        count = count_examples(pool.path, param=f"{pool.candidate}.file")
        if count < pool.examples:
            raise InvalidRequestError(
                f"The file has {count} examples; {pool.examples} are to be shown.",
                code="too_few_examples",
                param=f"{pool.candidate}.examples",
            )
    return ValidatedFiles(questions, general, excluded)


def check_graders_fit(files: InputFiles, validated: ValidatedFiles) -> None:
    """Holds every reference against its grader: a caller's pattern or schema may take long.

    Raises:
        InvalidRequestError: a grader cannot grade answers to these questions.
    """
    parse_grader(files.grader).check_fits(validated.questions)
    if files.general is not None:
        param = "grader" if files.general_grader == files.grader else "regression_grader"
        parse_grader(files.general_grader, param=param).check_fits(validated.general, param=param)


def _read(path: Path, param: str) -> list[Question]:
    questions = read_questions(path, param=param)
    if len(questions) > MAX_QUESTIONS:
        raise InvalidRequestError(
            f"The file has {len(questions):,} questions; at most {MAX_QUESTIONS:,} are compared on.",
            code="too_many_questions",
            param=param,
        )
    return questions


def _without_overlap(
    questions: list[Question], training: Mapping[str, Path]
) -> tuple[list[Question], list[dict[str, Any]]]:
    """The questions that no training file has, and the lines of the others."""
    keys = {file_id: read_question_keys(path) for file_id, path in training.items()}
    left: list[Question] = []
    excluded: list[dict[str, Any]] = []
    for question in questions:
        key = same_question_key(question.messages)
        known = next((file_id for file_id, trained in keys.items() if key in trained), None)
        if known is None:
            left.append(question)
        else:
            excluded.append({"line": question.line, "training_file": known})
    if not left:
        raise InvalidRequestError(
            f"All {len(questions)} questions of the file are in a training file, too; "
            "held-out questions must be others.",
            code="no_questions_left",
            param="file",
        )
    return left, excluded
