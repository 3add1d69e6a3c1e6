"""Validates a comparison's files in a child process: they may be large, and this process must respond."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from app.comparisons.input_files import (
    FIT_SECONDS,
    InputFiles,
    ValidatedFiles,
    check_graders_fit,
    validate_files,
)
from app.core.child_process import in_child
from app.core.errors import InvalidRequestError


def validate_in_child(is_abandoned: Callable[[], Awaitable[bool]], files: InputFiles) -> ValidatedFiles:
    """Return the questions that are to be asked, unless nobody waits for them any more.

    Raises:
        InvalidRequestError: a file is not what it must be, or a grader cannot grade answers to it.
    """
    validated = in_child(validate_files, files, is_abandoned=is_abandoned)
    try:
        in_child(check_graders_fit, files, validated, seconds=FIT_SECONDS, is_abandoned=is_abandoned)
    except TimeoutError:
        raise InvalidRequestError(
            f"grader: takes longer than {FIT_SECONDS:g} s on the references of the held-out file; "
            "simplify its patterns or its schema.",
            code="invalid_grader",
            param="grader",
        ) from None
    return validated
