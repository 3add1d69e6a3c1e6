"""Tools that a model may call, and calls that it made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class FunctionCall(BaseModel):
    """The function that a tool call names, its arguments as a JSON string."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that an earlier assistant turn made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionDefinition(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: str


class NamedTool(BaseModel):
    """The one tool that the model must call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction
