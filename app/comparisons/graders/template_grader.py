"""What OpenAI's graders have in common: a name, and templates that say what is compared with what."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Self, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import Grade, Grader, invalid_grader
from app.comparisons.graders.template import MAX_TEMPLATES, TemplateError, TemplateValues
from app.comparisons.questions import Question

Name = Annotated[str, Field(min_length=1, max_length=255)]


class TemplateGrader(Grader):
    """A grader whose texts are templates.

    https://developers.openai.com/api/docs/api-reference/graders
    """

    name: Name

    @abstractmethod
    def grade_values(self, values: TemplateValues, replies: Sequence[str | None]) -> Grade:
        """Return the grade of the answer that the values were made for.

        Raises:
            TemplateError: a template cannot be filled in.
        """

    @abstractmethod
    def templates(self) -> list[str]:
        """Return all templates of the grader."""

    @model_validator(mode="after")
    def _templates_are_bounded(self) -> Self:
        if sum(map(len, self.templates())) > MAX_TEMPLATES:
            raise PydanticCustomError(
                "templates",
                "has templates of more than {most} characters together",
                {"most": f"{MAX_TEMPLATES:,}"},
            )
        return self

    @override
    def grade(
        self,
        question: Question,
        answer: str,
        replies: Sequence[str | None] = (),
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> Grade:
        try:
            return self.grade_values(TemplateValues(question, answer, tool_calls), replies)
        except TemplateError as error:
            return Grade(None, str(error), error.kind)

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        for question in questions:
            values = TemplateValues(question, question.reference, question.reference_tool_calls or ())
            for template in self.templates():
                try:
                    values.check_item(template)
                except TemplateError as error:
                    message = f"{self.type} does not fit the file: on line {question.line}, {error}"
                    raise invalid_grader(param, message) from None


def refuse_python(document: Any) -> Any:
    """Return the grader's document, unless its type is `python`, which would run a caller's code."""
    if isinstance(document, dict) and cast("dict[str, Any]", document).get("type") == "python":
        raise PydanticCustomError(
            "python_grader",
            "graders of type 'python' would run a caller's code, which this service does not do; use "
            "string_check, text_similarity, score_model or label_model, or combine them with multi",
            {},
        )
    return cast("Any", document)
