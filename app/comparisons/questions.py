"""Held-out questions: a chat file whose last assistant turn is the answer to compare with."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from app.comparisons.tool_calls import calls_json
from app.core.errors import InvalidRequestError
from app.datasets.formats import parse_line
from app.datasets.request_file import read_request_file
from app.datasets.types import ChatExample, CompletionExample, ExampleError, PreferenceExample

MAX_SLICE_TEXT = 512


class Question(msgspec.Struct, frozen=True):
    """A held-out line in the form in which it is asked."""

    line: int
    """The line's number in its file, from 1."""
    messages: list[dict[str, Any]]
    """The conversation up to the answer."""
    reference: str
    """The answer that candidates' answers are compared with, as `answer_text` writes it."""
    reference_tool_calls: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    """The functions that every candidate may call, in OpenAI's form."""
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] = {}
    """The line's own metadata, for results by slice."""
    item: dict[str, Any] | None = None
    """What templates call `item`, where it is not made of the other fields."""


class _Metadata(msgspec.Struct):
    """The one field that a held-out line has in addition to those of a training line."""

    metadata: dict[str, str | float | bool | None] | None = None


def read_questions(path: Path, *, param: str = "file") -> list[Question]:
    """Return the questions of a held-out file, in its order.

    Raises:
        InvalidRequestError: the file is no held-out file; the message names the line and what is wrong there.
    """
    questions = [_question(number, line, param) for number, line in read_request_file(path, param=param)]
    if not questions:
        raise InvalidRequestError("The file is empty: it has no questions.", code="empty_file", param=param)
    return questions


def read_question_keys(path: Path) -> set[str]:
    """Return the keys of the questions that a training file answers: one for each assistant turn."""
    keys: set[str] = set()
    for _, line in read_request_file(path):
        try:
            example = parse_line(line)
        except ExampleError:
            continue  # such a line is not trained on
        if isinstance(example, CompletionExample):
            keys.add(same_question_key([{"role": "user", "content": example.prompt}]))
        elif isinstance(example, PreferenceExample):
            keys.add(same_question_key(msgspec.to_builtins(example.input.messages)))
        else:
            turns: list[dict[str, Any]] = msgspec.to_builtins(example.messages)
            keys.update(
                same_question_key(turns[:place])
                for place, turn in enumerate(turns)
                if turn["role"] == "assistant"
            )
    return keys


def same_question_key(messages: Sequence[dict[str, Any]]) -> str:
    """Return a key that is equal for questions that ask the same.

    Only the user's turns count, without case, spacing and Unicode form; candidates bring their own system
    prompts.
    """
    turns = [message for message in messages if message.get("role") == "user"] or list(messages)
    texts = (" ".join(unicodedata.normalize("NFKC", _text(turn)).casefold().split()) for turn in turns)
    return hashlib.blake2b("\x1f".join(texts).encode("utf-8", "replace"), digest_size=16).hexdigest()


def answer_text(content: Any, tool_calls: Sequence[dict[str, Any]] | None) -> str:
    """Return what graders read of an assistant turn: its text without thoughts or, if none, its tool calls.

    An engine without a reasoning parser leaves the thoughts in the text, and so may a line of the file. The
    calls are written as JSON, `[{"arguments": {…}, "name": …}]`, to be compared as text or as JSON.
    """
    text = _text({"content": content})
    _, ends_thoughts, answer = text.partition("</think>")
    text = answer.lstrip() if ends_thoughts else text
    if text.strip() or not tool_calls:
        return text
    return calls_json(tool_calls)


def _question(number: int, line: bytes, param: str) -> Question:
    try:
        example = parse_line(line)
        if not isinstance(example, ChatExample):
            raise ExampleError("unknown_format", "is no chat; a question has 'messages'", "/messages")
        turns: list[dict[str, Any]] = msgspec.to_builtins(example.messages)
        messages = [_asked(turn) for turn in turns]
        if len(messages) == 1:
            raise ExampleError("no_question", "has an answer, and no question before it", "/messages")
        answer = turns[-1]
        calls = answer.get("tool_calls") or None
        return Question(
            line=number,
            messages=messages[:-1],
            reference=answer_text(answer.get("content"), calls),
            reference_tool_calls=calls,
            tools=[_tool(tool) for tool in example.tools] if example.tools else None,
            parallel_tool_calls=example.parallel_tool_calls if example.tools else None,
            metadata=_metadata(line),
        )
    except ExampleError as error:
        place = f" ({error.pointer})" if error.pointer else ""
        message = f"Line {number} {error.message}{place}."
        raise InvalidRequestError(message, code=error.code, param=param) from None


def _asked(message: dict[str, Any]) -> dict[str, Any]:
    """Return the turn as a request takes it: `weight` is for training only."""
    return {key: value for key, value in message.items() if key != "weight" and value is not None}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as a request takes it; a line may describe the function alone."""
    function: dict[str, Any] = tool.get("function", tool)
    fields = ("name", "description", "parameters", "strict")
    described = {name: function[name] for name in fields if function.get(name) is not None}
    return {"type": "function", "function": described}


def _metadata(line: bytes) -> dict[str, str]:
    try:
        metadata = msgspec.json.decode(line, type=_Metadata).metadata or {}
    except msgspec.ValidationError as error:
        reason, _, _ = str(error).partition(" - at `")
        raise ExampleError(
            "invalid_metadata", f"has metadata that is no object of texts and numbers: {reason}", "/metadata"
        ) from None
    texts = {key: _slice_text(value) for key, value in metadata.items() if value is not None}
    for key, text in texts.items():
        if len(key) > MAX_SLICE_TEXT or len(text) > MAX_SLICE_TEXT:
            raise ExampleError(
                "invalid_metadata", f"has metadata longer than {MAX_SLICE_TEXT} characters", "/metadata"
            )
    return texts


def _slice_text(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            cast("dict[str, Any]", part) for part in cast("list[Any]", content) if isinstance(part, dict)
        ]
        return "".join(str(part.get("text") or "") for part in parts)
    return content if isinstance(content, str) else ""
