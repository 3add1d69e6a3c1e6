"""Tools that a model may call, and calls that it made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry


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


def check_tool_support(base: BaseModelEntry) -> None:
    """Check that a base model can call tools.

    Raises:
        InvalidRequestError: its catalogue entry has no tool parser, or its chat template shows no tools.
    """
    if base.tool_parser is None:
        raise InvalidRequestError(
            f"'{base.name}' cannot call tools, because its entry in the catalogue of base models has no "
            "'tool_parser'. Set it in TOQUE_BASE_MODELS, or add the base model with `toque models add … "
            "--tool-parser PARSER`.",
            code="unsupported_parameter",
            param="tools",
        )
    if base.chat_template_source is not None and "tools" not in base.chat_template_source:
        raise InvalidRequestError(
            f"'{base.name}' cannot call tools, because its chat template does not show them to the model. "
            "Set a 'chat_template' with `tools` in its entry in TOQUE_BASE_MODELS, or add the base model "
            "with `toque models add … --chat-template FILE`.",
            code="unsupported_parameter",
            param="tools",
        )
