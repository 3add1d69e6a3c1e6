"""What vLLM answers to `POST /v1/responses`, with all that it says beside OpenAI's specification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

WORDS = ["Leek", " soup", "."]
ARGUMENTS = ['{"name":', ' "leek"}']


def whole(body: dict[str, Any], *, is_aborted: bool = False) -> dict[str, Any]:
    """A whole answer: a call if the request demands one, else words. Our engines say so if it is aborted."""
    output = [item | {"id": f"vllm_{place}"} for place, item in enumerate(_output(body))]
    status = "incomplete" if _is_cut_off(body) else "completed"
    return _response(body, "cancelled" if is_aborted else status, output)


def stream(body: dict[str, Any], *, is_aborted: bool = False) -> Iterator[str]:
    """The same as server-sent events."""
    for number, event in enumerate(_events(body, is_aborted)):
        data = json.dumps(event | {"sequence_number": number}, separators=(",", ":"))
        yield f"event: {event['type']}\ndata: {data}\n\n"


def _events(body: dict[str, Any], is_aborted: bool) -> Iterator[dict[str, Any]]:
    for kind in ("created", "in_progress"):
        response = _response(body, "in_progress", []) | {"usage": None, "incomplete_details": None}
        yield {"type": f"response.{kind}", "response": response}
    output = _output(body)
    for place, item in enumerate(output):
        where = {"output_index": place, "item_id": f"vllm_{place}"}
        item["id"] = where["item_id"]
        grow = _grow_call if item["type"] == "function_call" else _grow_text
        for event in grow(item, body):
            yield where | event
        yield {"type": "response.output_item.done", "output_index": place, "item": item}
    # vLLM calls a response completed however it ended.
    yield {"type": "response.completed", "response": whole(body, is_aborted=is_aborted) | {"output": output}}


def _grow_text(item: dict[str, Any], body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    part = item["content"][0]
    is_message = item["type"] == "message"
    kind = "response.output_text" if is_message else "response.reasoning_text"
    begun = {"status": "in_progress", "content": [] if is_message else None}
    yield {"type": "response.output_item.added", "item": item | begun}
    empty = part | {"text": ""} | ({"logprobs": []} if is_message else {})
    yield {"type": "response.content_part.added", "content_index": 0, "part": empty}
    for word in WORDS[: 1 if _is_cut_off(body) else 3]:
        extra = {"logprobs": [_streamed_logprob(word)] if _wants_logprobs(body) else []} if is_message else {}
        yield {"type": f"{kind}.delta", "content_index": 0, "delta": word} | extra
    done = {"logprobs": []} if is_message else {}
    yield {"type": f"{kind}.done", "content_index": 0, "text": part["text"]} | done
    yield {"type": "response.content_part.done", "content_index": 0, "part": part}


def _grow_call(item: dict[str, Any], body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {"status": "in_progress", "arguments": ""}
    yield {"type": "response.output_item.added", "item": item | begun}
    for piece in ARGUMENTS:
        yield {"type": "response.function_call_arguments.delta", "delta": piece}
    yield {
        "type": "response.function_call_arguments.done",
        "arguments": item["arguments"],
        "name": item["name"],
    }


def _output(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Thoughts if some effort is asked for, then a call or words."""
    items: list[dict[str, Any]] = []
    if (body.get("reasoning") or {}).get("effort"):
        thought = {"type": "reasoning_text", "text": _text(body)}
        items.append(
            {
                "type": "reasoning",
                "summary": [],
                "content": [thought],
                "encrypted_content": None,
                "status": None,
            }
        )
    choice = body.get("tool_choice")
    if body.get("tools") and choice not in (None, "auto", "none"):
        name = body["tools"][0]["name"] if choice == "required" else choice["name"]
        call = {"type": "function_call", "call_id": "call_1", "name": name, "arguments": "".join(ARGUMENTS)}
        return [*items, call | {"namespace": None, "status": "completed"}]
    logprobs = [_logprob(word) for word in WORDS] if _wants_logprobs(body) else None
    part = {"type": "output_text", "text": _text(body), "annotations": [], "logprobs": logprobs}
    message = {"type": "message", "role": "assistant", "content": [part], "status": "completed"}
    return [*items, message | {"phase": None}]


def _response(body: dict[str, Any], status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """The object with what vLLM adds to OpenAI's, and what it repeats of the request in its own way."""
    return {
        "id": "resp_vllm",
        "created_at": 1,
        "object": "response",
        "model": body["model"],
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.get("instructions"),
        "metadata": None,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice", "none"),
        "tools": [tool | {"defer_loading": None} for tool in body.get("tools", [])],
        "top_p": body.get("top_p", 1.0),
        "background": False,
        "max_output_tokens": 2000,
        "previous_response_id": None,
        "reasoning": None,
        "service_tier": "auto",
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 5,
            "input_tokens_details": {
                "cached_tokens": 4,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": 3,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": 8,
        },
        "user": None,
        "kv_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def _text(body: dict[str, Any]) -> str:
    return WORDS[0] if _is_cut_off(body) else "".join(WORDS)


def _is_cut_off(body: dict[str, Any]) -> bool:
    return body.get("max_output_tokens", 100) < len(WORDS)


def _wants_logprobs(body: dict[str, Any]) -> bool:
    return "message.output_text.logprobs" in (body.get("include") or [])


def _logprob(word: str) -> dict[str, Any]:
    likely = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
    return likely | {"top_logprobs": [likely]}


def _streamed_logprob(word: str) -> dict[str, Any]:
    likely = {"token": word, "logprob": -0.5}
    return likely | {"top_logprobs": [likely]}
