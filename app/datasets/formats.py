"""Parses a line of a training file: OpenAI's chat format, its preference pairs, or prompt and completion.

Formats: https://platform.openai.com/docs/guides/supervised-fine-tuning#formatting-your-data and
https://platform.openai.com/docs/guides/direct-preference-optimization. Lines in the ShareGPT and Alpaca
formats become chat examples (see `app.datasets.foreign_formats`), and OpenAI's older functions become tools
(see `app.datasets.legacy_functions`), so that every reader gets the same example.
"""

from __future__ import annotations

import msgspec

from app.datasets import foreign_formats, legacy_functions
from app.datasets.decoding import decode_as, describe_error
from app.datasets.rules import check_chat, check_preference
from app.datasets.strict_json import find_flaw
from app.datasets.types import (
    ChatExample,
    CompletionExample,
    Example,
    ExampleError,
    Format,
    Message,
    PreferenceExample,
    Role,
    Weight,
)


class _PlainMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A turn that is only text, as nearly all are."""

    role: Role
    content: str
    weight: Weight | msgspec.UnsetType = msgspec.UNSET


class _PlainChat(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[_PlainMessage]


_plain_decoder = msgspec.json.Decoder(_PlainChat)
_line_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_chat_decoder = msgspec.json.Decoder(ChatExample)
_completion_decoder = msgspec.json.Decoder(CompletionExample)
_preference_decoder = msgspec.json.Decoder(PreferenceExample)


def parse_line(line: bytes) -> Example:
    """Returns the example on one line of JSONL.

    Raises:
        ExampleError: the line is not strict JSON, is in no known format, or breaks a rule of its format.
    """
    return recognise_line(line)[1]


def recognise_line(line: bytes) -> tuple[Format, Example]:
    """Returns the format of one line of JSONL, and its example.

    Raises:
        ExampleError: the line is not strict JSON, is in no known format, or breaks a rule of its format.
    """
    chat = _plain_chat(line)
    if chat is None:
        return _decode_any(line)
    check_chat(chat)
    return "chat", chat


def _plain_chat(line: bytes) -> ChatExample | None:
    """Takes the fast path: returns the conversation, or None for a line that needs the thorough checks.

    msgspec accepts a duplicate key and keeps the last value. Counting quotation marks reveals duplicates: a
    line has two for each key and string, plus those inside strings. Lines with `\\u00` escapes take the slow
    path, since `\\u0022` would break the count and `\\u0000` is refused.
    """
    if b"\\u00" in line:
        return None
    try:
        plain = _plain_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    marks = 2
    messages: list[Message] = []
    for turn in plain.messages:
        marks += 8 + turn.content.count('"')
        if turn.weight is msgspec.UNSET:
            messages.append(Message(turn.role, turn.content))
        else:
            marks += 2
            messages.append(Message(turn.role, turn.content, weight=turn.weight))
    return ChatExample(messages) if marks == line.count(b'"') else None


def _decode_any(line: bytes) -> tuple[Format, Example]:
    if (flaw := find_flaw(line)) is not None:
        raise ExampleError(flaw.code, flaw.message, flaw.pointer)
    try:
        fields = _line_decoder.decode(line)
    except msgspec.ValidationError:
        raise ExampleError("not_an_object", "is not a JSON object; each line is one object {…}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExampleError("invalid_json", f"is not valid JSON: {describe_error(error)}") from None

    if "messages" in fields or "preferred_output" in fields or "non_preferred_output" in fields:
        return _decode_openai(line, is_chat="messages" in fields)
    if "prompt" in fields and "completion" in fields:
        completion = decode_as(_completion_decoder, line)
        if not completion.completion.strip():
            raise ExampleError("empty_completion", "has an empty completion: nothing to learn", "/completion")
        return "completion", completion
    if (converted := foreign_formats.convert(fields, line)) is not None:
        return converted
    raise ExampleError(
        "unknown_format",
        "has neither 'messages' (chat), 'prompt' and 'completion', nor 'input', 'preferred_output' and "
        f"'non_preferred_output' (preference); it has "
        f"{', '.join(repr(name[:40]) for name in list(fields)[:5]) or 'no fields'}",
    )


def _decode_openai(line: bytes, *, is_chat: bool) -> tuple[Format, Example]:
    newer = legacy_functions.modernise(line)
    try:
        if is_chat:
            chat = decode_as(_chat_decoder, newer or line)
            check_chat(chat)
            return "chat", chat
        pair = decode_as(_preference_decoder, newer or line)
        check_preference(pair)
        return "preference", pair
    except ExampleError as error:
        pointer = legacy_functions.older_pointer(error.pointer, line) if newer else error.pointer
        raise ExampleError(error.code, error.message, pointer) from None
