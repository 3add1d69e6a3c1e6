"""Conversations that a chat template of some kind is given, drawn at random."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from app.datasets.template_segments import SAMPLE_TEXTS
from tests.support.chat_templates import TemplateKind

Turn = dict[str, Any]
TOOLS = [
    {"type": "function", "function": {"name": "stock", "parameters": {"type": "object", "properties": {}}}},
    {"function": {"description": "Orders.", "name": "order", "strict": True}},
]
EDGES = ["", " ", "\n", "\n\n", "  \n", "\u0301", "!"]


def texts(kind: TemplateKind) -> st.SearchStrategy[str]:
    plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
    inner = plain | st.sampled_from([*SAMPLE_TEXTS, *kind.control_tokens, "Leek.", "a</think>b"])
    edges = st.sampled_from(EDGES)
    return st.tuples(edges, inner, edges).map("".join).filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn, kind: TemplateKind) -> dict[str, Any]:
    """A line of a training file."""
    text = texts(kind)
    messages: list[Turn] = []
    if draw(st.booleans()):
        messages.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(text)})
    uses_tools = kind.has_tools and draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(text)})
        for number in range(draw(st.integers(0, 2)) if uses_tools else 0):
            functions = [
                {"name": draw(st.sampled_from(["stock", "order"])), "arguments": draw(arguments(kind))}
                for _ in range(draw(st.integers(1, 2 if kind.has_parallel_calls else 1)))
            ]
            calls = [
                {"id": f"call-{number}-{place}", "type": "function", "function": function}
                for place, function in enumerate(functions)
            ]
            content = draw(st.sampled_from([None, ""]) | text)
            messages.append(draw(answers(kind, {"content": content, "tool_calls": calls})))
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": draw(text)} for call in calls
            ]
        messages.append(draw(answers(kind, {"content": draw(text)})))
    if not any(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in messages):
        messages[-1].pop("weight")
    return {"messages": messages} | ({"tools": TOOLS} if uses_tools else {})


def arguments(kind: TemplateKind) -> st.SearchStrategy[str]:
    """A call's arguments as their authors write them: a JSON object in a string, with any white space."""
    value = st.recursive(
        texts(kind) | st.integers(-(10**9), 10**9) | st.sampled_from([None, True, 1.0, 2.5e-7]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abü", max_size=2), inner),
        max_leaves=4,
    )
    written = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 2, "ensure_ascii": False}])
    fields = st.dictionaries(st.sampled_from(["item", "count", "größe"]), value, max_size=3)
    return st.tuples(fields, written).map(lambda drawn: json.dumps(drawn[0], **drawn[1]))


@st.composite
def answers(draw: st.DrawFn, kind: TemplateKind, fields: Turn) -> Turn:
    turn = {"role": "assistant"} | fields
    where = draw(st.sampled_from([None, *kind.thoughts]))
    if where == "inline" and turn["content"]:
        turn["content"] = f"<think>{draw(texts(kind))}</think>{turn['content']}"
    elif where is not None and where != "inline":
        turn[where] = draw(texts(kind))
    weight = draw(st.sampled_from([None, 0, 1]))
    return turn if weight is None else turn | {"weight": weight}
