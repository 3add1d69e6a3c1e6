"""A chat template's Jinja source, compiled as transformers compiles it, and what the template is given.

A template is given messages and tools in the form in which vLLM gives them to it
(`vllm.renderers.chat_utils.parse_chat_messages` and `vllm.renderers.hf`), so that training reads what serving
reads. See https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.datasets.types import Message, TextPart, ToolCall

ContentFormat = Literal["string", "openai"]
"""Whether a message's content is a text, or a list of parts as in OpenAI's API: vLLM's two choices of
`--chat-template-content-format`."""

_MARK = "\ufdd0toque\ufdd0"


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the model writes: its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> Template:
    """Compiles a chat template in transformers' environment.

    Raises:
        TemplateError: the source is not a Jinja template.
    """

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    return environment.from_string(
        source, globals={"raise_exception": raise_exception, "strftime_now": strftime_now}
    )


def detect_content_format(template: Template) -> ContentFormat:
    """Returns the form of content that the template writes: a text, unless it writes nothing but parts."""

    def writes(content: Any) -> bool:
        try:
            messages = [{"role": "user", "content": content}]
            return _MARK in template.render(messages=messages, tools=None, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError):
            return False

    return "openai" if not writes(_MARK) and writes([{"type": "text", "text": _MARK}]) else "string"


def template_messages(
    messages: list[Message], source: str, content_format: ContentFormat, *, ends_with_answer: bool
) -> list[dict[str, Any]]:
    """Returns the messages as vLLM gives them to a template with this source.

    Where the template knows no developer, what developers say becomes the system's, in one message. With
    `ends_with_answer`, the last message is one that the model writes and does not read.
    """
    given = [_template_message(message, content_format) for message in messages]
    if ends_with_answer and messages:
        given[-1] |= _as_written(messages[-1])
    if "'developer'" in source or '"developer"' in source:
        return given
    if not any(message.role == "developer" for message in messages):
        return given
    said = [message.text for message in messages if message.role in ("system", "developer")]
    if len(said) == 1 and messages[0].role == "developer":
        return [given[0] | {"role": "system"}, *given[1:]]
    others = [one for one in given if one["role"] not in ("system", "developer")]
    return [{"role": "system", "content": "\n\n".join(text for text in said if text)}, *others]


def _template_message(message: Message, content_format: ContentFormat) -> dict[str, Any]:
    content: Any = message.text
    if content_format == "openai" and message.role != "tool":
        parts = message.content if isinstance(message.content, list) else [TextPart(content)]
        content = [{"type": "text", "text": part.text} for part in parts if message.content is not None]
    given: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        given["name"] = message.name
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    if (thoughts := message.thoughts) is not None:
        given["reasoning"] = given["reasoning_content"] = thoughts
    if message.tool_calls:
        given["tool_calls"] = [_read_call(call) for call in message.tool_calls]
    return given


def _read_call(call: ToolCall) -> dict[str, Any]:
    """Returns a call as vLLM gives it to a template: the arguments are an object, the fields sorted."""
    function = {"arguments": json.loads(call.function.arguments), "name": call.function.name}
    return {"id": call.id, "function": function, "type": call.type}


def _as_written(message: Message) -> dict[str, Any]:
    """Returns the fields that a message has in another form when the model writes it."""
    written: dict[str, Any] = {}
    if message.thoughts is not None:
        written["thinking"] = message.thoughts  # the name in gpt-oss's template, which vLLM does not give
    if message.tool_calls:
        # Models write the name of a function before its arguments.
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return written


def template_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Returns the tools as vLLM gives them to a template: the fields that it knows, in its order."""
    if tools is None:
        return None
    given: list[dict[str, Any]] = []
    for tool in tools:
        function: dict[str, Any] = tool.get("function", tool)
        described = {name: function.get(name) for name in ("name", "description", "parameters")}
        if function.get("strict") is not None:
            described["strict"] = function["strict"]
        given.append({"type": "function", "function": described})
    return given
