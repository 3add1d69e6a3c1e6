"""Items of `POST /v1/responses`: what a conversation consists of.

An item that a client copies from an earlier response has fields that mean nothing here; they are dropped, as
in chat messages. Everything else about an item is checked, and becomes the object that OpenAI's API lists.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.completions.schemas.prompts import MAX_PARTS
from app.completions.schemas.refusals import by_json_type, only, refused
from app.completions.schemas.tools import Arguments

ItemObject = dict[str, Any]
"""An item as it is stored and listed: `ItemResource` of OpenAI's specification."""

_TYPES = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


class InputText(BaseModel):
    """A text in a message, or in what a function returned."""

    type: Annotated[
        Literal["input_text", "output_text", "text"],
        only(
            "input_text",
            "output_text",
            "text",
            says=lambda kind: f"these models read text only, not '{kind}'",
        ),
    ]
    text: str


class RefusalPart(BaseModel):
    """A refusal of an earlier answer, which the model reads as text."""

    type: Literal["refusal"]
    refusal: str


def _kind_of_part(part: Any) -> str:
    return "refusal" if isinstance(part, dict) and cast("Any", part).get("type") == "refusal" else "text"


Part = Annotated[
    Annotated[InputText, Tag("text")] | Annotated[RefusalPart, Tag("refusal")], Discriminator(_kind_of_part)
]
Content = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True), Tag("a list")],
    by_json_type("a text", "a list of parts"),
]


def _texts(content: str | list[InputText | RefusalPart]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.text if isinstance(part, InputText) else part.refusal for part in content]


class MessageItem(BaseModel):
    """A message of whoever takes part; one of the assistant is an earlier answer."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content

    def as_object(self, new_id: str) -> ItemObject:
        """Returns the item as it is stored and listed."""
        is_answer = self.role == "assistant"
        extra: dict[str, Any] = {"annotations": [], "logprobs": []} if is_answer else {}
        kind = "output_text" if is_answer else "input_text"
        content = [{"type": kind, "text": text} | extra for text in _texts(self.content)]
        return {
            "id": new_id,
            "type": "message",
            "status": "completed",
            "role": self.role,
            "content": content,
        }


class FunctionCallItem(BaseModel):
    """A call that the model made; its arguments are JSON."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: Arguments

    def as_object(self, new_id: str) -> ItemObject:
        """Returns the item as it is stored and listed."""
        return {"id": new_id, "status": "completed"} | self.model_dump()


class FunctionOutputItem(BaseModel):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Content

    def as_object(self, new_id: str) -> ItemObject:
        """Returns the item as it is stored and listed."""
        output = self.output
        if not isinstance(output, str):
            output = [{"type": "input_text", "text": text} for text in _texts(output)]
        return {
            "id": new_id,
            "type": self.type,
            "status": "completed",
            "call_id": self.call_id,
            "output": output,
        }


class Thought(BaseModel):
    """A text of the model's reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(BaseModel):
    """What the model thought before an earlier answer or call."""

    type: Literal["reasoning"]
    summary: Annotated[list[Thought], Field(max_length=MAX_PARTS, fail_fast=True)] = []
    content: Annotated[list[Thought], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    encrypted_content: Annotated[
        None, refused("it was encrypted by another service; send the reasoning as 'content', or leave it out")
    ] = None

    def as_object(self, new_id: str) -> ItemObject:
        """Returns the item as it is stored and listed."""
        content = [{"type": "reasoning_text", "text": thought.text} for thought in self.content or []]
        summary = [{"type": "summary_text", "text": thought.text} for thought in self.summary]
        return {"id": new_id, "type": "reasoning", "summary": summary, "content": content}


class ItemReference(BaseModel):
    """The id of an item of a stored response, in place of the item."""

    type: Literal["item_reference"] | None = None
    id: Annotated[str, Field(min_length=1, max_length=64)]


def _type_of(item: Any) -> Any:
    if not isinstance(item, dict):
        return "message"
    given = cast("dict[str, Any]", item)
    without_type = "message" if "role" in given or "id" not in given else "item_reference"
    return given.get("type") or without_type


def _known_type(item: Any) -> Any:
    if (kind := _type_of(item)) not in _TYPES:
        reason = f"items of type '{str(kind)[:64]}' are none of {', '.join(_TYPES)}"
        raise PydanticCustomError("unsupported_value", "{reason}", {"reason": reason})
    return item


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_type_of),
    BeforeValidator(_known_type),
]
