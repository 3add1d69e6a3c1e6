"""Training examples about colours, supervised and in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = ["red", "green", "blue", "white", "black"]
SYSTEM = "Say the colour of the thing."
Lines = Callable[..., Path]


def chat(question: str, answer: str, *, system: str = SYSTEM, **last: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **last},
        ]
    }


def preference(question: str, preferred: str, other: str, *, system: str = SYSTEM) -> dict[str, Any]:
    turns = chat(question, "", system=system)["messages"][:-1]
    return {
        "input": {"messages": turns},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }


def preference_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of unequal length, of which the shorter word is always preferred."""
    return [
        preference("x" * (number % 7) + f"thing {number}?", COLOURS[number % 5], "the colour of a thing")
        for number in range(count)
    ]


def colours(count: int) -> list[dict[str, Any]]:
    """Examples of unequal length that begin alike, as real ones do."""
    return [chat("x" * (number % 7) + f"thing {number}?", COLOURS[number % 5]) for number in range(count)]


def lines_of(examples: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples).encode()
