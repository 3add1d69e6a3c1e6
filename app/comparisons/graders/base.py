"""What every grader is: a pydantic model of its settings that grades one answer at a time.

A grader that compares texts extends `TextGrader` and needs only `grade_text`; `registry` lists them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from app.comparisons.questions import Question
from app.core.errors import InvalidRequestError

MAX_WEIGHT = 1_000_000_000
"""The largest weight that a setting may have, so that no sum of weights overflows."""
JUDGE_TOKENS = 512
"""The most tokens of a judge's reply, unless its request says otherwise."""
GradeError = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "invalid_variable_error",
    "other_error",
    "model_grader_parse_error",
]
"""Why there is no score, by the names that OpenAI's graders have for it."""


class Grade(msgspec.Struct, frozen=True):
    """How good an answer is, and why."""

    score: float | None
    """From 0 to 1, or None if the answer could not be graded: the judge's reply made no sense, or a pattern
    took too long."""
    detail: str = ""
    """One line for a person to read."""
    error: GradeError | None = None
    reward: float | None = None
    """The score on the grader's own scale, where that is not 0 to 1."""
    parts: dict[str, float] = {}
    """The rewards of the graders that this one combines, by their names."""


class JudgeRequest(msgspec.Struct, frozen=True):
    """One request to a judge, to be sent with temperature 0 and room for `JUDGE_TOKENS`."""

    model: str
    """Served name of the judge."""
    messages: list[dict[str, Any]]
    parameters: dict[str, Any] = {}
    """Fields of the chat completion that replace these two, or come in addition."""
    path: str = ""
    """Where in the grader's document the judge is described, such as `.graders.tone`."""

    @property
    def fields(self) -> dict[str, Any]:
        """All fields of the chat completion besides the model and the messages."""
        return {"max_tokens": JUDGE_TOKENS, "temperature": 0.0} | self.parameters


class Grader(BaseModel, ABC):
    """A grader with its settings, as a request describes it. Unknown settings are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    type: Any
    """The name by which requests choose the grader: a `Literal` in each grader."""

    @abstractmethod
    def grade(
        self,
        question: Question,
        answer: str,
        replies: Sequence[str | None] = (),
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> Grade:
        """Return how good an answer is.

        This may take a tenth of a second where a pattern backtracks, so it does not belong on an event loop.

        Args:
            question: the question, with the reference that the answer is compared with.
            answer: the answer, as `questions.answer_text` makes it from the assistant's turn.
            replies: the judges' replies to `judge_requests`, in the same order; None for one that failed.
            tool_calls: the answer's tool calls, as a chat completion has them.
        """

    @abstractmethod
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        """Check that the grader can grade answers to these questions. This, too, may take long.

        Raises:
            InvalidRequestError: it cannot. The message names the line of the file, and the error's `param` is
                the path of the grader that does not fit, which starts with `param`.
        """

    @property
    def has_judges(self) -> bool:
        """Whether `judge_requests` returns any for some answer."""
        return False

    def judge_requests(
        self,
        question: Question,  # noqa: ARG002
        answer: str,  # noqa: ARG002
        tool_calls: Sequence[dict[str, Any]] = (),  # noqa: ARG002
    ) -> list[JudgeRequest]:
        """Return the requests whose replies `grade` needs; only graders that ask a model have any.

        Like `grade`, this does not belong on an event loop: it fills in templates.
        """
        return []


class TextGrader(Grader):
    """A grader that needs nothing but the texts of the answer and the reference."""

    @abstractmethod
    def grade_text(self, reference: str, answer: str) -> Grade:
        """Return the answer's grade."""

    def misfit(self, reference: str) -> str | None:  # noqa: ARG002
        """Return why no answer can be compared with this reference, or None if answers can."""
        return None

    @override
    def grade(
        self,
        question: Question,
        answer: str,
        replies: Sequence[str | None] = (),
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> Grade:
        return self.grade_text(question.reference, answer)

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        for question in questions:
            if problem := self.misfit(question.reference):
                raise self.misfit_error(param, f"line {question.line}'s reference {problem}")

    def misfit_error(self, param: str, reason: str) -> InvalidRequestError:
        """Return the error that says why this grader does not fit the file."""
        return invalid_grader(param, f"{self.type} does not fit the file: {reason}")


def binary_grade(is_right: bool) -> Grade:
    """Return a grade of 1 or 0."""
    return Grade(float(is_right))


def invalid_grader(param: str, message: str) -> InvalidRequestError:
    """Return the error for a grader that cannot be used; `param` is its path in the request."""
    return InvalidRequestError(f"{param}: {message}.", code="invalid_grader", param=param)
