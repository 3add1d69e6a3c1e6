"""What OpenAI's graders that ask a model have in common: the conversation, and the form of the reply.

The reply is JSON with the one field `result`, which the engine is told to keep to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import Grade, JudgeRequest
from app.comparisons.graders.template import Template, TemplateError, TemplateValues
from app.comparisons.graders.template_grader import TemplateGrader
from app.comparisons.questions import Question

MAX_MESSAGES = 50
MAX_PARTS = 50
MAX_CONVERSATION = 400_000
"""Characters of all turns that a judge is shown."""


def _is_text(kind: Any) -> Any:
    if kind in ("input_image", "input_audio"):
        raise PydanticCustomError(
            "part_type",
            "{kind} cannot be read by the models that are served here; use input_text",
            {"kind": kind},
        )
    return kind


class TextPart(BaseModel):
    """A part of a message; text is the only kind that these models read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Annotated[Literal["input_text", "output_text"], BeforeValidator(_is_text)]
    text: Template


def _form(content: Any) -> str:
    if isinstance(content, list):
        return "parts"
    return "text" if isinstance(content, str) else "part"


Part = Annotated[Annotated[Template, Tag("text")] | Annotated[TextPart, Tag("part")], Discriminator(_form)]
Content = Annotated[
    Annotated[Template, Tag("text")]
    | Annotated[TextPart, Tag("part")]
    | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_form),
]


class InputMessage(BaseModel):
    """A turn of the conversation that the judge is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: Literal["message"] = "message"

    @property
    def template(self) -> str:
        """The template of the whole turn."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


class JudgedGrader(TemplateGrader):
    """A grader that asks a served model."""

    model: Annotated[str, Field(min_length=1, max_length=255)]
    """Served name of the judge: a base model, a fine-tuned one, or an alias."""
    input: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES)

    @abstractmethod
    def result_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the reply's `result`."""

    @abstractmethod
    def grade_result(self, result: Any) -> Grade | None:
        """Return the grade that the judge's result stands for, or None if it is none that was asked for."""

    def parameters(self) -> dict[str, Any]:
        """Return the fields of the chat completion that the grader's settings choose."""
        return {}

    @override
    def templates(self) -> list[str]:
        return [message.template for message in self.input]

    @property
    @override
    def has_judges(self) -> bool:
        return True

    @override
    def judge_requests(
        self, question: Question, answer: str, tool_calls: Sequence[dict[str, Any]] = ()
    ) -> list[JudgeRequest]:
        """Return the one request, or none if a template cannot be filled in for this answer."""
        values = TemplateValues(question, answer, tool_calls)
        try:
            messages = self._messages(values)
        except TemplateError:
            return []
        schema = {
            "type": "object",
            "properties": {"result": self.result_schema()},
            "required": ["result"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "judgement", "schema": schema, "strict": True}}
        return [JudgeRequest(self.model, messages, self.parameters() | {"response_format": form})]

    @override
    def grade_values(self, values: TemplateValues, replies: Sequence[str | None]) -> Grade:
        self._messages(values)
        reply = replies[0] if replies else None
        if reply is None:
            return Grade(None, "the judge gave no reply")
        unusable = Grade(None, f"the judge gave no judgement: {reply[-200:]!r}", "model_grader_parse_error")
        try:
            fields: Any = msgspec.json.decode(reply)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return unusable
        if not isinstance(fields, dict):
            return unusable
        return self.grade_result(cast("dict[str, Any]", fields).get("result")) or unusable

    def _messages(self, values: TemplateValues) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        size = 0
        for message in self.input:
            text = values.fill_in(message.template)
            size += len(text)
            if size > MAX_CONVERSATION:
                reason = f"the turns have more than {MAX_CONVERSATION:,} characters once they are filled in"
                raise TemplateError(reason, "other_error")
            messages.append({"role": message.role, "content": text})
        return messages
