"""Tools that a model may call, and calls that it made."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from app.completions.schemas.constraint import ShownSchema, check_constraint, check_costs
from app.completions.schemas.refusals import by_json_type, only
from app.core.errors import InvalidRequestError
from app.core.json_schema import SchemaError, values_in
from app.core.settings import BaseModelEntry

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 128 * 2**10
"""The size of all tools of a request together, as JSON."""

FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ToolType = Annotated[
    Literal["function"],
    only("function", says=lambda kind: f"'{kind}' is not supported; tools are of type 'function'"),
]


def _check_arguments(arguments: str) -> str:
    """Refuse arguments that engines, which parse them for the chat template, would fail on.

    What is no JSON passes: a model may have written it, and engines show an empty object in its place.
    """
    try:
        parsed = json.loads(arguments)  # as engines do
        deque(values_in(parsed), maxlen=0)
        json.dumps(parsed, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        return arguments
    except (SchemaError, RecursionError):
        problem = "the JSON is nested too deep"
    except UnicodeEncodeError:
        problem = "the JSON has an unpaired surrogate in it, which is not a valid Unicode character"
    except ValueError:
        problem = "the JSON has a number in it that is too long"
    else:
        return arguments
    raise PydanticCustomError("invalid_arguments", "{problem}", {"problem": problem})


Arguments = Annotated[str, AfterValidator(_check_arguments)]
"""The arguments of a call as a JSON string."""


class FunctionCall(BaseModel):
    """The function that a tool call names."""

    name: str
    arguments: Arguments


class ToolCall(BaseModel):
    """A call that an earlier assistant turn made."""

    id: str
    type: ToolType = "function"
    function: FunctionCall


class FunctionDefinition(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: FunctionName
    description: str | None = None
    parameters: ShownSchema | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid")

    type: ToolType
    function: FunctionDefinition


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: FunctionName


class NamedTool(BaseModel):
    """The one tool that the model must call."""

    model_config = ConfigDict(extra="ignore")

    type: Annotated[
        Literal["function"],
        only(
            "function",
            says=lambda kind: (
                f"'{kind}' is not supported; name a function, or give the tools that are allowed in 'tools'"
            ),
        ),
    ]
    function: NamedFunction


def _refuse_large(tools: object) -> object:
    is_too_long = isinstance(tools, list) and len(cast("list[object]", tools)) > MAX_TOOLS  # refused for that
    if not is_too_long and len(msgspec.json.encode(tools, enc_hook=dict)) > MAX_TOOLS_BYTES:
        problem = f"together the tools are larger than {MAX_TOOLS_BYTES:,} bytes"
        raise PydanticCustomError("too_large", "{problem}", {"problem": problem})
    return cast("object", tools)


NotTooLarge = BeforeValidator(_refuse_large)
"""Bounds all tools together, before the time is spent that checking each of them takes."""
Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True), NotTooLarge]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a text")] | Annotated[NamedTool, Tag("an object")],
    by_json_type("'none', 'auto', 'required'", "the name of a function as an object"),
]


def check_tools(
    base: BaseModelEntry,
    functions: Sequence[FunctionDefinition],
    choice: Literal["none", "auto", "required"],
    named: str | None = None,
    *,
    place: str = "tools[{}].function",
) -> None:
    """Check that a base model can call the functions, and that engines can compile what constrains its calls.

    `named` is the function that must be called, whatever the choice; `place` says where in the request a
    function is.

    Raises:
        InvalidRequestError: it cannot, or the functions or the choice are not valid.
    """
    _check_names([function.name for function in functions], choice, named, place)
    if not functions or (choice == "none" and named is None):
        return
    _check_support(base)
    constraining = [
        (at, function.parameters)
        for at, function in enumerate(functions)
        if function.parameters and (function.strict or choice == "required" or function.name == named)
    ]
    for at, parameters in constraining:
        try:
            check_constraint(parameters)
        except SchemaError as error:
            raise _invalid(f"{place.format(at)}.parameters", f"the schema {error}") from None
    try:
        check_costs(parameters for _, parameters in constraining)
    except SchemaError as error:
        raise _invalid("tools", f"what the model must keep to, all schemas together, {error}") from None


def _check_names(names: list[str], choice: str, named: str | None, place: str) -> None:
    for at, name in enumerate(names):
        if name in names[:at]:
            param = f"{place.format(at)}.name"
            raise _invalid(param, f"another tool has the name '{name}' already")
    if not names and (choice == "required" or named is not None):
        raise _invalid("tool_choice", "it asks for a call, and there are no 'tools'")
    if named is not None and named not in names:
        raise _invalid("tool_choice", f"no tool has the name '{named}'")


def _invalid(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for '{param}': {reason}.", code="invalid_value", param=param)


def _check_support(base: BaseModelEntry) -> None:
    if base.tool_parser is None:
        raise InvalidRequestError(
            f"'{base.name}' cannot call tools, because its entry in the catalogue of base models has no "
            "'tool_parser'. Set it in TOQUE_BASE_MODELS, or add the base model with `toque models add … "
            "--tool-parser PARSER`.",
            code="unsupported_parameter",
            param="tools",
        )
    source = base.chat_template_source
    if source is not None and "tools" not in source:
        raise InvalidRequestError(
            f"'{base.name}' cannot call tools, because its chat template does not show them to the model. "
            "Set a 'chat_template' with `tools` in its entry in TOQUE_BASE_MODELS, or add the base model "
            "with `toque models add … --chat-template FILE`.",
            code="unsupported_parameter",
            param="tools",
        )
