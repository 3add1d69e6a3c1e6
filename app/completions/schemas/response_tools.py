"""Tools of `POST /v1/responses`, and which of them the model is to call."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from app.completions.schemas.refusals import only
from app.completions.schemas.tools import MAX_TOOLS, FunctionDefinition, FunctionName, NotTooLarge

Mode = Literal["none", "auto", "required"]
FunctionType = Annotated[
    Literal["function"],
    only(
        "function",
        says=lambda kind: (
            f"'{kind}' is a tool of OpenAI's own; describe a 'function' instead, and run it yourself"
        ),
    ),
]


class TypedTool(BaseModel):
    """A tool's type, which is checked before the rest of it."""

    type: FunctionType


class FunctionTool(FunctionDefinition, TypedTool):
    """A function that the model may call."""

    def as_object(self) -> dict[str, Any]:
        """Returns the tool as the response repeats it, and as engines take it."""
        return {"type": "function"} | self.model_dump(exclude={"type"})


class ChosenFunction(BaseModel):
    """The one function that the model must call."""

    model_config = ConfigDict(extra="forbid")

    type: FunctionType
    name: FunctionName


class AllowedTools(BaseModel):
    """The tools that the model may call, or must call one of, out of those that the request describes."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


def _kind_of_choice(given: Any) -> str:
    if isinstance(given, ChosenFunction | AllowedTools):
        return "allowed" if isinstance(given, AllowedTools) else "function"
    if not isinstance(given, dict):
        return "mode"
    kind = cast("dict[str, Any]", given).get("type")
    return "allowed" if kind == "allowed_tools" else "function"


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True), NotTooLarge]
ToolChoice = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[ChosenFunction, Tag("function")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_kind_of_choice),
]
