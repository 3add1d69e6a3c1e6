"""Bad files, made on the spot, and what must be said of each: code, line and pointer."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

from tests.support.training_files import chat_line, training_bytes

MIB = 2**20
CALL = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "leek"}'}}
TOOL = {"type": "function", "function": {"name": "stock", "parameters": {}}}
SYSTEM = {"role": "system", "content": "You cook."}
USER, ANSWER = {"role": "user", "content": "Leeks?"}, {"role": "assistant", "content": "Three."}


@dataclass(frozen=True)
class BadFile:
    """A file, and the finding that it must get."""

    name: str
    make: Callable[[], bytes]
    code: str
    line: int | None
    pointer: str = ""
    severity: str = "error"


def chat(*turns: dict[str, Any], **fields: Any) -> str:
    return json.dumps({"messages": list(turns)} | fields)


def in_line_4(name: str, line: str | bytes, code: str, pointer: str = "", severity: str = "error") -> BadFile:
    """A line among good ones."""
    content = line if isinstance(line, bytes) else line.encode()
    return BadFile(
        name, lambda: training_bytes(3) + content + b"\n" + training_bytes(9), code, 4, pointer, severity
    )


def whole(name: str, make: Callable[[], bytes], code: str, line: int | None = 1) -> BadFile:
    return BadFile(name, make, code, line)


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("train.jsonl", training_bytes())
    return packed.getvalue()


def _tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("train.jsonl")
        entry.size = len(training_bytes())
        archive.addfile(entry, io.BytesIO(training_bytes()))
    return packed.getvalue()


def _call(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [CALL | changes]}


def bad_lines() -> Iterator[BadFile]:
    """Lines that are wrong by themselves."""
    yield in_line_4("not UTF-8", b'{"messages": "\xff"}', "invalid_encoding")
    yield in_line_4(
        "Latin-1", chat_line("Größe").replace("\\u00f6", "ö").encode("latin-1"), "invalid_encoding"
    )
    yield in_line_4("no JSON", "{", "invalid_json")
    yield in_line_4("single quotes", "{'messages': []}", "invalid_json")
    yield in_line_4("two objects", chat_line() + chat_line(), "invalid_json")
    yield in_line_4("a list", "[1]", "not_an_object")
    yield in_line_4("a number", "5", "not_an_object")
    yield in_line_4("a long line", chat_line("x" * 9 * MIB), "line_too_long")
    yield in_line_4("brackets 100,000 deep", "[" * 100_000, "nested_too_deep")
    yield in_line_4("objects 100,000 deep", '{"a":' * 100_000 + "1" + "}" * 100_000, "nested_too_deep")
    deep = '{"messages": [], "x": ' + "[" * 100 + "]" * 100 + "}"
    yield in_line_4("100 deep", deep, "nested_too_deep", "/x" + "/0" * 64)
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        line = f'{{"messages": [{{"role": "user", "content": {number}}}]}}'
        yield in_line_4(number, line, "non_finite_number", "/messages/0/content")
        yield in_line_4(
            f"{number} elsewhere", chat_line()[:-1] + f', "x": [{number}]}}', "non_finite_number", "/x/0"
        )
    digits = chat_line()[:-1] + ', "id": ' + "9" * 5000 + "}"
    yield in_line_4("5,000 digits", digits, "number_too_large", "/id")
    answer = '{"role": "assistant", "content": "c"}'
    twice = f'{{"messages": [{{"role": "user", "content": "a", "content": "b"}}, {answer}]}}'
    yield in_line_4("a key twice", twice, "duplicate_key", "/messages/0/content")
    hidden = f'{{"messages": [], "messages": [{{"role": "user", "content": "\\""}}, {answer}]}}'
    yield in_line_4("messages twice", hidden, "duplicate_key", "/messages")
    yield in_line_4("a null character", chat_line("a\x00b"), "null_character", "/messages/0/content")
    yield in_line_4("half a pair", chat_line("a\ud800b"), "lone_surrogate", "/messages/0/content")
    yield in_line_4("the other half", chat_line(answer="\udc00"), "lone_surrogate", "/messages/1/content")
    yield in_line_4("a surrogate in a key", '{"\\ud800": 1}', "lone_surrogate")
    yield in_line_4("no known field", '{"text": "no"}', "unknown_format")
    yield in_line_4("no field", "{}", "unknown_format")


def bad_examples() -> Iterator[BadFile]:
    """Lines of sound JSON that are no examples."""
    yield in_line_4("messages are a text", '{"messages": "x"}', "invalid_field", "/messages")
    yield in_line_4("a message is a text", '{"messages": ["x"]}', "invalid_field", "/messages/0")
    yield in_line_4(
        "a role is a number", chat({"role": 5, "content": "x"}), "invalid_field", "/messages/0/role"
    )
    for content in (5, True, {"text": "x"}, [5]):
        pointer = "/messages/0/content" + ("/0" if isinstance(content, list) else "")
        yield in_line_4(
            f"content {content}", chat({"role": "user", "content": content}, ANSWER), "invalid_field", pointer
        )
    yield in_line_4(
        "a name is a number", chat(USER | {"name": 1}, ANSWER), "invalid_field", "/messages/0/name"
    )
    yield in_line_4("tools are an object", chat(USER, ANSWER, tools={}), "invalid_field", "/tools")
    yield in_line_4("a tool is a text", chat(USER, ANSWER, tools=["x"]), "invalid_field", "/tools/0")
    yield in_line_4(
        "parallel_tool_calls is a text",
        chat(USER, ANSWER, parallel_tool_calls="yes"),
        "invalid_field",
        "/parallel_tool_calls",
    )
    yield in_line_4(
        "tool_calls are a text",
        chat(USER, ANSWER | {"tool_calls": "x"}),
        "invalid_field",
        "/messages/1/tool_calls",
    )
    yield in_line_4("no role", chat({"content": "x"}), "missing_field", "/messages/0/role")
    yield in_line_4(
        "an unknown role", chat({"role": "chef", "content": "x"}), "unknown_role", "/messages/0/role"
    )
    yield in_line_4("no messages", '{"messages": []}', "no_messages", "/messages")
    yield in_line_4("no assistant", chat(USER), "no_assistant_turn", "/messages")
    yield in_line_4(
        "the last is the user", chat(USER, ANSWER, USER), "last_turn_not_assistant", "/messages/2/role"
    )
    yield in_line_4("an empty answer", chat_line(answer=""), "empty_content", "/messages/1/content")
    yield in_line_4("a blank question", chat_line(" \n"), "empty_content", "/messages/0/content")
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}
    yield in_line_4("an image", chat(parts, ANSWER), "unsupported_content", "/messages/0/content/1")
    for weight in (2, -1, 0.5, "1", True):
        yield in_line_4(
            f"weight {weight!r}", chat_line(weight=weight), "invalid_weight", "/messages/1/weight"
        )
    yield in_line_4(
        "weight of a user", chat(USER | {"weight": 1}, ANSWER), "invalid_weight", "/messages/0/weight"
    )
    yield in_line_4(
        "thoughts of a user",
        chat(USER | {"reasoning": "x"}, ANSWER),
        "invalid_reasoning",
        "/messages/0/reasoning",
    )
    yield in_line_4(
        "thoughts twice",
        chat(USER, ANSWER | {"reasoning": "x", "reasoning_content": "y"}),
        "invalid_reasoning",
        "/messages/1/reasoning_content",
    )
    yield in_line_4("all weights 0", chat_line(weight=0), "nothing_to_learn", "/messages")
    for arguments in ("{", "5", "", "[]"):
        call = _call(function={"name": "stock", "arguments": arguments})
        yield in_line_4(
            f"arguments {arguments!r}",
            chat(USER, call, tools=[TOOL]),
            "invalid_tool_call",
            "/messages/1/tool_calls/0/function/arguments",
        )
    yield in_line_4(
        "arguments are an object",
        chat(USER, _call(function={"name": "stock", "arguments": {}}), tools=[TOOL]),
        "invalid_field",
        "/messages/1/tool_calls/0/function/arguments",
    )
    yield in_line_4(
        "the user calls",
        chat(USER | {"tool_calls": [CALL]}, ANSWER, tools=[TOOL]),
        "invalid_tool_call",
        "/messages/0/tool_calls",
    )
    yield in_line_4(
        "no such tool", chat(USER, _call()), "unknown_tool", "/messages/1/tool_calls/0/function/name"
    )
    for tool, pointer in (
        ({}, "/tools/0/name"),
        ({"type": "retrieval"}, "/tools/0/type"),
        ({"type": "function", "function": 3}, "/tools/0/function"),
        ({"type": "function", "function": {"name": 7}}, "/tools/0/function/name"),
        (
            {"type": "function", "function": TOOL["function"] | {"parameters": []}},
            "/tools/0/function/parameters",
        ),
        ({"name": "stock", "description": 5}, "/tools/0/description"),
    ):
        yield in_line_4(f"the tool {tool}", chat(USER, ANSWER, tools=[tool]), "invalid_field", pointer)
    answer = {"role": "tool", "tool_call_id": "c2", "content": "3"}
    yield in_line_4(
        "no such call",
        chat(USER, _call(), answer, ANSWER, tools=[TOOL]),
        "unknown_tool_call",
        "/messages/2/tool_call_id",
    )
    yield from _calls()
    yield in_line_4(
        "a completion is a number", '{"prompt": "x", "completion": 1}', "invalid_field", "/completion"
    )
    yield in_line_4(
        "a completion is blank", '{"prompt": "x", "completion": " "}', "empty_completion", "/completion"
    )
    pair: dict[str, Any] = {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [USER],
    }
    yield in_line_4("a user's answer", json.dumps(pair), "unexpected_role", "/non_preferred_output/0/role")
    yield in_line_4(
        "equal answers",
        json.dumps(pair | {"non_preferred_output": [ANSWER]}),
        "equal_outputs",
        "/non_preferred_output",
    )
    yield in_line_4(
        "half a pair of answers", json.dumps({"preferred_output": [ANSWER]}), "missing_field", "/input"
    )
    sharegpt = {
        "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}],
        "system": "s",
    }
    yield in_line_4("ShareGPT, empty", json.dumps(sharegpt), "empty_content", "/conversations/1/value")
    thoughts = ANSWER | {"reasoning_content": "Hm."}
    yield in_line_4(
        "thoughts without template", chat(USER, thoughts), "reasoning_not_supported", "/messages/1"
    )
    sharegpt = {"conversations": [{"from": "chef", "value": "x"}]}
    yield in_line_4("ShareGPT, unknown", json.dumps(sharegpt), "unknown_role", "/conversations/0/from")
    alpaca = {"instruction": "i", "input": "", "output": ""}
    yield in_line_4("Alpaca, empty", json.dumps(alpaca), "empty_content", "/output")


def _calls() -> Iterator[BadFile]:
    """Lines whose calls are wrong together with other fields, and those in other forms."""
    two = {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "c2"}]}
    yield in_line_4(
        "parallel calls",
        chat(USER, two, tools=[TOOL], parallel_tool_calls=False),
        "invalid_tool_call",
        "/messages/1/tool_calls",
    )
    call = {"role": "assistant", "function_call": CALL["function"]}
    functions = [TOOL["function"]]
    for name, line, code, pointer in (
        (
            "both calls",
            chat(USER, call | _call(), tools=[TOOL]),
            "invalid_tool_call",
            "/messages/1/function_call",
        ),
        ("both tools", chat(USER, call, functions=functions, tools=[TOOL]), "invalid_field", "/functions"),
        ("functions are an object", chat(USER, ANSWER, functions={}), "invalid_field", "/functions"),
        ("a function is a text", chat(USER, ANSWER, functions=["x"]), "invalid_field", "/functions/0"),
        ("no such function", chat(USER, call), "unknown_tool", "/messages/1/function_call/name"),
        (
            "a function's arguments",
            chat(USER, {"role": "assistant", "function_call": {"name": "stock", "arguments": "3"}}),
            "invalid_tool_call",
            "/messages/1/function_call/arguments",
        ),
        (
            "a function call is a text",
            chat(USER, {"role": "assistant", "function_call": "auto"}, functions=functions),
            "invalid_field",
            "/messages/1/function_call",
        ),
        (
            "another function's result",
            chat(USER, call, {"role": "function", "name": "x", "content": "3"}, ANSWER, functions=functions),
            "unknown_tool_call",
            "/messages/2/name",
        ),
        (
            "a result of nothing",
            chat(USER, {"role": "function", "name": "stock", "content": "3"}, ANSWER),
            "unknown_tool_call",
            "/messages/1/name",
        ),
    ):
        yield in_line_4(name, line, code, pointer)
    turn = {"from": "function_call", "value": "stock()"}
    for name, line, code, pointer in (
        ("ShareGPT, no call", {"conversations": [turn]}, "invalid_tool_call", "/conversations/0/value"),
        ("ShareGPT, tools", {"conversations": [], "tools": "stock"}, "invalid_field", "/tools"),
        (
            "ShareGPT, no such tool",
            {
                "system": "s",
                "conversations": [
                    {"from": "human", "value": "x"},
                    turn | {"value": json.dumps({"name": "stock", "arguments": {}})},
                ],
            },
            "unknown_tool",
            "/conversations/1/value",
        ),
        (
            "ShareGPT, no call before",
            {"conversations": [{"from": "observation", "value": "3"}, {"from": "gpt", "value": "x"}]},
            "unknown_tool_call",
            "/conversations/0/value",
        ),
    ):
        yield in_line_4(name, json.dumps(line), code, pointer)
    pair = {"preferred_output": [call], "non_preferred_output": [ANSWER]}
    yield in_line_4(
        "a pair's function",
        json.dumps({"input": {"messages": [USER]}} | pair),
        "unknown_tool",
        "/preferred_output/0/function_call/name",
    )
    equal = {"preferred_output": [_call()], "non_preferred_output": [_call(id="c9")]}
    yield in_line_4(
        "equal calls",
        json.dumps({"input": {"messages": [USER], "tools": [TOOL]}} | equal),
        "equal_outputs",
        "/non_preferred_output",
    )


def bad_files() -> Iterator[BadFile]:
    """Files that are wrong as a whole."""
    yield whole("empty", lambda: b"", "empty_file", None)
    yield whole("blank", lambda: b"\n \n", "empty_file", None)
    yield whole("UTF-16", lambda: training_bytes().decode().encode("utf-16"), "utf16")
    yield whole("UTF-16 without mark", lambda: training_bytes().decode().encode("utf-16-le"), "utf16")
    yield whole("UTF-32", lambda: training_bytes().decode().encode("utf-32"), "utf16")
    array = json.dumps([json.loads(chat_line())] * 12)
    yield whole("a JSON array", array.encode, "json_array")
    yield whole("an indented array", ("[\n" + array[1:]).encode, "json_array")
    yield whole("CSV", lambda: b"prompt,completion\nLeek?,Soup.\n", "csv")
    yield whole("CSV by semicolon", lambda: b'\xef\xbb\xbf"prompt";"completion"\r\n"a";"b"\r\n', "csv")
    yield whole("zip", _zip, "zip_archive")
    yield whole("tar", _tar, "tar_archive")
    yield whole("bzip2", lambda: bz2.compress(training_bytes()), "unsupported_compression")
    yield whole("pickle", lambda: pickle.dumps([training_bytes()]), "pickle")
    yield whole("Parquet", lambda: b"PAR1" + bytes(100) + b"PAR1", "parquet")
    yield whole("a zip in gzip", lambda: gzip.compress(_zip()), "zip_archive")
    yield whole("a tar in Zstandard", lambda: zstandard.compress(_tar()), "tar_archive")
    yield whole("gzip bomb", lambda: gzip.compress(b" " * 200 * MIB, 1), "decompression_bomb")
    yield whole("Zstandard bomb", lambda: zstandard.compress(b"\n" * 200 * MIB), "decompression_bomb", None)
    noise = "".join(chat_line(str(hash((n, "x")))) + "\n" for n in range(9000)).encode()
    yield whole("truncated gzip", lambda: gzip.compress(noise)[:-2000], "truncated_file", None)
    yield whole("truncated Zstandard", lambda: zstandard.compress(noise)[:-2000], "truncated_file", None)
    whole_gzip = gzip.compress(training_bytes())
    yield whole("damaged gzip", (whole_gzip[:-8] + bytes(4) + whole_gzip[-4:]).__bytes__, "damaged_file")
    yield whole("100 MB in one line", lambda: b'{"messages": "' + b"x" * 100 * MIB + b'"}', "line_too_long")


def remarkable_files() -> Iterator[BadFile]:
    """Files that can be trained on, and of which something is said."""

    def remark(
        name: str,
        make: Callable[[], bytes],
        code: str,
        line: int | None,
        pointer: str = "",
        severity: str = "info",
    ) -> BadFile:
        return BadFile(name, make, code, line, pointer, severity)

    yield remark("BOM", lambda: b"\xef\xbb\xbf" + training_bytes(), "byte_order_mark", 1)
    yield remark("CRLF", lambda: training_bytes().replace(b"\n", b"\r\n"), "crlf_line_ends", 1)
    yield remark("no last newline", lambda: training_bytes().rstrip(), "no_final_newline", 12)
    yield remark("empty lines", lambda: training_bytes(5) + b"\n \n" + training_bytes(7), "empty_line", 6)
    yield remark("9 examples", lambda: training_bytes(9), "too_few_examples", None, severity="warning")
    raw = json.dumps(
        {"messages": [USER, {"role": "assistant", "content": "a\u2028b\u0085c"}]}, ensure_ascii=False
    )
    yield in_line_4("U+2028", raw, "unicode_line_separator", "/messages/1/content", "info")
    yield in_line_4(
        "the assistant first", chat(SYSTEM, ANSWER, USER, ANSWER), "assistant_first", "/messages/1", "warning"
    )
    yield in_line_4(
        "two questions", chat(USER, USER, ANSWER), "consecutive_user_turns", "/messages/1", "warning"
    )
    yield in_line_4(
        "a control token",
        chat_line(answer="x <|im_end|> y"),
        "special_token_in_content",
        "/messages/1/content",
        "warning",
    )
    yield in_line_4("too long", chat_line("Recite.", "leek " * 3000), "example_too_long")
    yield in_line_4("tools without template", chat(USER, _call(), tools=[TOOL]), "tools_not_supported")
    sharegpt = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    yield in_line_4("ShareGPT", json.dumps(sharegpt), "converted_format", severity="info")
    alpaca = {"instruction": "i", "input": "x", "output": "o"}
    yield in_line_4("Alpaca", json.dumps(alpaca), "converted_format", severity="info")
    unique = chat_line("Only once?", "No.")
    yield BadFile(
        "twice",
        lambda: training_bytes(11) + f"{unique}\n{unique}\n".encode(),
        "duplicate_example",
        13,
        "",
        "warning",
    )
    nearly = chat_line("  only ONCE", "no!")
    yield BadFile(
        "nearly twice",
        lambda: training_bytes(11) + f"{unique}\n{nearly}\n".encode(),
        "near_duplicate",
        13,
        "",
        "info",
    )
    pair = {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [ANSWER | {"content": "x"}],
    }
    yield BadFile(
        "pairs among chats",
        lambda: training_bytes() + json.dumps(pair).encode() + b"\n",
        "mixed_formats",
        None,
        "",
        "warning",
    )


def corpus() -> list[BadFile]:
    return [*bad_lines(), *bad_examples(), *bad_files(), *remarkable_files()]
