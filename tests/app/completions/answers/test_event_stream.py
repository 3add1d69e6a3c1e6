"""Streams: forwarded as they arrive, wherever the network cut them, and an end that is none is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.completions.answers import ChatAnswer, EventStream
from app.completions.vllm_client import RetryableError
from app.core.errors import InvalidRequestError

DONE = b"data: [DONE]\n\n"


def event(content: str | None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": None} | fields
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"


ERROR = b'data: {"error": {"message": "EngineDeadError()", "type": "InternalServerError", "code": 500}}\n\n'


@given(
    st.lists(st.sampled_from([event("é"), event('"usage"'), event("a\n\n"), b": alive\n\n"]), max_size=5),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_any_cut_of_any_stream(events: list[bytes], cuts: list[int]) -> None:
    stream = b"".join([*events, DONE])
    at_once = EventStream(ChatAnswer(include_usage=False)).forward(stream)
    cut, passed, at = EventStream(ChatAnswer(include_usage=False)), b"", 0
    for number in range(len(stream)):
        length = cuts[number % len(cuts)]
        passed += cut.forward(stream[at : at + length])
        at += length
    assert passed == at_once
    assert passed.endswith(DONE)
    assert cut.has_ended


def test_an_event_waits_for_no_other() -> None:
    stream = EventStream(ChatAnswer(include_usage=False))
    assert b'"content":"a"' in stream.forward(event("a"))
    assert b'"content":"b"' in stream.forward(event("b") + b"data: ")
    assert stream.forward(b"x") == b""


def test_an_engine_that_fails_before_its_first_word_may_be_replaced() -> None:
    with pytest.raises(RetryableError):
        EventStream(ChatAnswer(include_usage=False)).forward(ERROR + DONE)


def test_an_engine_that_refuses_in_the_stream() -> None:
    said = {"message": "Grammar error: too large", "type": "BadRequestError", "param": None, "code": 400}
    refusal = b"data: " + json.dumps({"error": said}).encode() + b"\n\n"
    request = json.dumps({"model": "m", "messages": [], "response_format": {}}).encode()
    with pytest.raises(InvalidRequestError) as caught:
        EventStream(ChatAnswer(include_usage=False), request).forward(refusal + DONE)
    assert (caught.value.body.code, caught.value.body.param) == ("invalid_json_schema", "response_format")


@pytest.mark.parametrize("word", [b"event: odd", b"Internal Server Error", b"retry: 1", b": vLLM says hello"])
def test_what_is_no_event_stays_here(word: bytes) -> None:
    stream = EventStream(ChatAnswer(include_usage=False))
    assert stream.forward(word + b"\n\n") in (b"", b":\n\n")
    assert stream.forward(event("a") + DONE).endswith(DONE)


def test_an_engine_that_fails_later_ends_the_stream_with_our_error() -> None:
    stream = EventStream(ChatAnswer(include_usage=False))
    stream.forward(event("a"))
    assert json.loads(stream.forward(ERROR + DONE).removeprefix(b"data: ")) == {
        "error": {
            "message": "The engine broke off its answer.",
            "type": "server_error",
            "param": None,
            "code": "engine_unavailable",
        }
    }
    assert stream.has_ended
    assert stream.forward(event("b")) == b""
