"""Tools of `POST /v1/responses`, and which of them the model is to call."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.completions.schemas.response_items import refuse
from app.completions.schemas.tools import FunctionDefinition


def _only_functions(given: object) -> object:
    if isinstance(given, str) and given != "function":
        raise refuse(
            f"tools of type '{given[:64]}' are not supported, because OpenAI runs them or defines them; "
            "describe a 'function' instead, and run it yourself"
        )
    return given


FunctionType = Annotated[Literal["function"], BeforeValidator(_only_functions)]


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
    name: str


class AllowedTools(BaseModel):
    """The tools that the model may call, or must call one of, out of those that the request describes."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Field(min_length=1, max_length=128, fail_fast=True)]


def kind_of_choice(given: Any) -> str:
    """Returns the tag of a tool choice."""
    if not isinstance(given, dict):
        return "mode"
    kind = cast("dict[str, Any]", given).get("type")
    return "allowed" if kind == "allowed_tools" else "function"
