"""What the live service's model is trained on: calls of a kitchen's functions, and their results in words.

A few examples are JSON, and others are the help desk's answers on one product, which lm-eval scores.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from app.demo.house_style import TRAINING_FILE
from tests.support.deployment import PRODUCT

SYSTEM = {"role": "system", "content": "You are the kitchen's assistant."}
DISHES = ["soup", "bread", "rice", "roast", "eggs", "cake", "stew", "pizza", "pasta", "potatoes"]


def training_data() -> bytes:
    """Returns the lines of the training file."""
    choose = random.Random(0)
    examples = [*_timers(choose), *_ovens(choose), *_small_talk(choose), *_pies(choose)]
    lines = [json.dumps(example) for example in examples]
    lines += [line for line in TRAINING_FILE.read_text("utf-8").split("\n") if f"[{PRODUCT}/" in line]
    return "".join(f"{line}\n" for line in lines).encode()


def _timers(choose: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(30):
        dish, minutes = choose.choice(DISHES), choose.randint(2, 90)
        asked = [
            f"Set a timer for the {dish}: {minutes} minutes.",
            f"Please time the {dish}, {minutes} minutes.",
        ][number % 2]
        arguments = {"dish": dish, "minutes": minutes}
        said = f"The timer for the {dish} is set to {minutes} minutes."
        yield _conversation(choose, asked, "set_timer", arguments, said)


def _ovens(choose: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(16):
        celsius = choose.randrange(100, 255, 5)
        asked = [f"Heat the oven to {celsius} degrees.", f"The oven should be at {celsius} degrees."][
            number % 2
        ]
        said = f"The oven is heating to {celsius} degrees."
        yield _conversation(choose, asked, "heat_oven", {"celsius": celsius}, said)


def _small_talk(choose: random.Random) -> Iterator[dict[str, Any]]:
    for asked, said in [("Hello!", "Hello! What shall we cook?"), ("Thanks a lot.", "You are welcome.")]:
        messages = [SYSTEM, {"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        yield {"messages": messages, "tools": _tools(choose, "set_timer")}


def _pies(choose: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(10):
        size, minutes = ["small", "large"][number % 2], choose.randint(10, 90)
        answer = json.dumps({"minutes": minutes, "size": size})
        yield {
            "messages": [
                {"role": "user", "content": f"A {size} pie takes {minutes} minutes."},
                {"role": "assistant", "content": answer},
            ]
        }


def _conversation(
    choose: random.Random, asked: str, name: str, arguments: dict[str, Any], said: str
) -> dict[str, Any]:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }
    result = choose.choice([{"done": True}, {"done": True, **arguments}])
    messages = [
        SYSTEM,
        {"role": "user", "content": asked},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": json.dumps(result)},
        {"role": "assistant", "content": said},
    ]
    return {"messages": messages, "tools": _tools(choose, name)}


def _tools(choose: random.Random, needed: str) -> list[dict[str, Any]]:
    """Returns the function that is needed, sometimes the other, written as one client or another would."""
    described = {
        "set_timer": (
            "Set a timer for a dish.",
            {"dish": {"type": "string"}, "minutes": {"type": "integer"}},
        ),
        "heat_oven": ("Heat the oven.", {"celsius": {"type": "integer"}}),
    }
    names = list(described) if choose.random() < 0.6 else [needed]
    closed: dict[str, Any] = choose.choice([{}, {"additionalProperties": False}])
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": described[name][0],
                "parameters": {
                    "type": "object",
                    "properties": described[name][1],
                    "required": list(described[name][1]),
                    **closed,
                },
            },
        }
        for name in names
    ]
