"""What vLLM 0.32 says becomes OpenAI's object: nothing of its own, no null too many, none too few."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.completions.answers import ChatAnswer, CompletionAnswer, EventStream
from app.completions.vllm_client import RetryableError
from tests.specification.shapes import CHUNKS, SHAPES

CHAT, COMPLETION = "POST /v1/chat/completions", "POST /v1/completions"
USAGE = {
    "prompt_tokens": 5,
    "total_tokens": 8,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 4, "created_cache_tokens": None, "multimodal_tokens": None},
    "completion_tokens_details": None,
}
STATED = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 4},
}
BEYOND = {
    "service_tier": None,
    "system_fingerprint": "vllm-0.32.0-1234",
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "prompt_text": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}
"""What vLLM says beside the fields of the specification, or where that has no null."""
LOGPROB = {"token": "a", "logprob": -0.5, "bytes": [97]}


def whole_chat(message: dict[str, Any], **choice: Any) -> bytes:
    said = {"role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None}
    said |= {"function_call": None, "reasoning": None} | message
    about = {"index": 0, "message": said, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    choices = [about | {"token_ids": None, "routed_experts": None} | choice]
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 3, "model": "m"}
    return json.dumps(head | {"choices": choices, "usage": USAGE} | BEYOND).encode()


def shaped(content: bytes) -> dict[str, Any]:
    answer = ChatAnswer(include_usage=False)
    completion = json.loads(answer.whole(content))
    assert list(SHAPES[CHAT].iter_errors(completion)) == []
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 3)
    return completion


def test_a_conversations_answer() -> None:
    assert shaped(whole_chat({"content": "Leek."})) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 3,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Leek.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": STATED,
        "system_fingerprint": "vllm-0.32.0-1234",
    }


def test_tool_calls_and_thoughts() -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "stock", "arguments": '{"of":"leek"}'}}
    [choice] = shaped(whole_chat({"tool_calls": [call], "reasoning": "Hm."}, finish_reason="tool_calls"))[
        "choices"
    ]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning": "Hm.",
        "tool_calls": [call],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_an_answer_without_calls_did_not_end_with_them() -> None:
    """With `tool_choice: required` vLLM says so even of a model that thought, and then called nothing."""
    [choice] = shaped(whole_chat({"content": "", "reasoning": "Hm."}, finish_reason="tool_calls"))["choices"]
    assert choice["finish_reason"] == "stop"
    called = {"tool_calls": [{"index": 0, "id": "call-1", "function": {"name": "f", "arguments": "{}"}}]}
    for deltas, told in (([{"reasoning": "Hm."}, {}], "stop"), ([called, {}], "tool_calls")):
        passed = EventStream(ChatAnswer(include_usage=False)).forward(events(deltas, "tool_calls"))
        *_, last, _, _ = passed.split(b"\n\n")
        assert json.loads(last.removeprefix(b"data: "))["choices"][0]["finish_reason"] == told


def test_logprobs_have_the_refusals() -> None:
    content = [LOGPROB | {"top_logprobs": [LOGPROB | {"bytes": None}]}]
    [choice] = shaped(whole_chat({"content": "a"}, logprobs={"content": content}))["choices"]
    assert choice["logprobs"] == {"content": content, "refusal": None}


def test_prompt_logprobs_only_if_asked_for() -> None:
    content = whole_chat({"content": "a"}).replace(b'"prompt_logprobs": null', b'"prompt_logprobs": [null]')
    assert "prompt_logprobs" not in shaped(content)
    asked = ChatAnswer(include_usage=False, prompt_logprobs=True)
    assert json.loads(asked.whole(content))["prompt_logprobs"] == [None]


@pytest.mark.parametrize(("said", "told"), [(None, "stop"), ("length", "length"), ("repetition", "length")])
def test_finish_reasons_are_openais(said: str | None, told: str) -> None:
    [choice] = shaped(whole_chat({"content": "a"}, finish_reason=said))["choices"]
    assert choice["finish_reason"] == told


@pytest.mark.parametrize("content", [whole_chat({"content": "a"}, finish_reason="abort"), b"{}", b'{"id": '])
def test_what_is_no_answer_may_be_asked_elsewhere(content: bytes) -> None:
    with pytest.raises(RetryableError):
        ChatAnswer(include_usage=False).whole(content)


def test_a_prompts_answer() -> None:
    logprobs = {"text_offset": [0, 1], "token_logprobs": [None, -1.5], "tokens": ["a", "b"]}
    logprobs["top_logprobs"] = [None, {"b": -1.5}]
    choice = {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 3, "model": "m"}
    beyond = {"stop_reason": None, "token_ids": None, "prompt_token_ids": None, "prompt_logprobs": [None]}
    said = head | {"choices": [choice | beyond], "usage": USAGE} | BEYOND
    completion = json.loads(CompletionAnswer(include_usage=False).whole(json.dumps(said).encode()))
    assert list(SHAPES[COMPLETION].iter_errors(completion)) == []
    fingerprint = {"system_fingerprint": "vllm-0.32.0-1234"}
    assert completion == head | {"choices": [choice], "usage": STATED} | fingerprint


def events(deltas: list[dict[str, Any]], reason: str) -> bytes:
    """Return a stream as vLLM writes it: the role first, then what it has, and the usage at the end."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 3, "model": "m"}
    said = [{"role": "assistant", "content": ""}, *deltas]
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}]
        for delta in said
    ]
    choices[-1][0] |= {"finish_reason": reason, "stop_reason": None}
    chunks: list[dict[str, Any]] = [head | {"choices": each} for each in choices]
    chunks.append(head | {"choices": [], "usage": USAGE})
    return (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    )


@given(
    st.lists(st.fixed_dictionaries({}, optional={"content": st.text(), "reasoning": st.text()}), min_size=1),
    st.booleans(),
    st.lists(st.integers(1, 300), min_size=1),
)
def test_a_streams_chunks_are_the_whole_answer(
    deltas: list[dict[str, Any]], include_usage: bool, cuts: list[int]
) -> None:
    stream = events(deltas, "stop")
    answer = ChatAnswer(include_usage=include_usage)
    reader, passed, at = EventStream(answer), b"", 0
    for number in range(len(stream)):
        length = cuts[number % len(cuts)]
        passed += reader.forward(stream[at : at + length])
        at += length
    *sent, done, _ = passed.split(b"\n\n")
    assert done == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in sent]
    assert [list(CHUNKS[CHAT].iter_errors(chunk)) for chunk in chunks] == [[]] * len(chunks)
    usages = [chunk.get("usage", "absent") for chunk in chunks]
    length = len(deltas) + 1
    assert usages == [None] * length + [STATED] if include_usage else usages == ["absent"] * length
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 3)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", *[None] * len(deltas)]
    for field in ("content", "reasoning"):
        whole = "".join(delta.get(field, "") for delta in deltas)
        assert "".join(choice["delta"].get(field, "") for choice in choices) == whole


def test_each_choice_of_a_stream_says_its_role_once() -> None:
    answer = ChatAnswer(include_usage=False)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 3, "model": "m"}
    told: list[str | None] = []
    for index in (0, 1, 0, 1):
        choice = {"index": index, "delta": {"role": "assistant", "content": "a"}}
        event = answer.event(json.dumps(head | {"choices": [choice]}).encode())
        told.append(json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"].get("role"))
    assert told == ["assistant", "assistant", None, None]
