"""The items of a conversation as engines take them.

vLLM reads the items of OpenAI's API with exceptions that would change the conversation: of an answer or a
reasoning item with several parts only the first counts, and a last item that is not completed is continued
instead of answered.
"""

from __future__ import annotations

from typing import Any


def to_engine(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the items, which are as they are stored, as vLLM understands them."""
    shaped: list[dict[str, Any]] = []
    for item, following in zip(items, [*items[1:], None], strict=True):
        # Reasoning is part of the answer or the call after it; alone it is no turn of a conversation.
        if item["type"] == "reasoning" and not (_is_answer(following) and _thoughts(item)):
            continue
        shaped.append(_SHAPES[item["type"]](item))
    return shaped


def _is_answer(item: dict[str, Any] | None) -> bool:
    return item is not None and (
        item.get("role") == "assistant" or item["type"] in ("function_call", "reasoning")
    )


def _message(item: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = item["content"]
    content: Any = [{"type": "input_text", "text": part["text"]} for part in parts]
    if item["role"] == "assistant":
        content = "".join(part["text"] for part in parts)
    elif len(parts) == 1:
        content = parts[0]["text"]
    return {"type": "message", "role": item["role"], "content": content}


def _function_call(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("type", "call_id", "name", "arguments")}


def _function_output(item: dict[str, Any]) -> dict[str, Any]:
    output = item["output"]
    if not isinstance(output, str):
        output = "\n".join(part["text"] for part in output)
    return {"type": "function_call_output", "call_id": item["call_id"], "output": output}


def _reasoning(item: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": _thoughts(item)}]
    return {"type": "reasoning", "id": item["id"], "summary": [], "content": content}


def _thoughts(item: dict[str, Any]) -> str:
    return "\n".join(thought["text"] for thought in item.get("content") or item["summary"])


_SHAPES = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_output,
    "reasoning": _reasoning,
}
