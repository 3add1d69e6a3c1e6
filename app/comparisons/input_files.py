"""The files of a comparison, read and validated in a child process, since they may be large."""

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
"""The time that checking every reference by its grader may take."""
MAX_QUESTIONS = 5_000
"""The most questions in one file."""


class ExamplePool(msgspec.Struct, frozen=True):
    """A file that few-shot examples are drawn from."""

    path: Path
    examples: int
    """Examples that the file must have."""
    candidate: str
    """The path of the candidate in the request, for errors."""


class InputFiles(msgspec.Struct, frozen=True):
    """The files that a request to compare names, with the graders that must fit them."""

    held_out: Path
    grader: Any
    general: Path | None
    general_grader: Any
    training: dict[str, Path]
    """Training files by id; held-out questions that are in one of them are left out."""
    pools: list[ExamplePool]


class ValidatedFiles(msgspec.Struct, frozen=True):
    """The questions that are to be asked."""

    questions: list[Question]
    general: list[Question]
    excluded: list[dict[str, Any]]
    """The lines that were left out, as `Comparison.excluded` stores them."""


def validate_files(files: InputFiles) -> ValidatedFiles:
    """Read and validate all files; `check_graders_fit` is the other half.

    Raises:
        InvalidRequestError: a file is not what it must be, or no question is left.
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
    """Check every reference by its grader. A caller's pattern or schema may take long.

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
    """Return the questions that are in no training file, and the lines of the others."""
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
