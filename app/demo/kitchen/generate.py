"""Writes training.jsonl and heldout.jsonl: requests to a kitchen, and the calls that fulfil them.

`python -m app.demo.kitchen.generate`. Each request is a sentence with values in its gaps. The held-out file
has other sentences, numbers and pairs of units than the training file; the foods are those that the kitchen
orders over and over. In the training file several requests make a conversation, so that the descriptions of
the functions are read once for all of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SYSTEM = "You run the kitchen."
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A function, and how people ask for it: in each pair, what is trained on, and what is held out."""

    description: str
    parameters: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, tuple[Sequence[Any], Sequence[Any]]]
    sentences: tuple[Sequence[str], Sequence[str]]

    def tool(self, name: str) -> dict[str, Any]:
        """Returns its description in OpenAI's form."""
        parameters = {"type": "object", "properties": self.parameters, "required": list(self.parameters)}
        function = {"name": name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


_INTEGER = {"type": "integer"}
_STRING = {"type": "string"}
_MINUTES = (
    [2, 3, 4, 6, 8, 9, 11, 12, 14, 15, 18, 20, 24, 25, 30, 35, 40, 45, 55, 60],
    [5, 7, 10, 13, 16, 17, 19, 22, 27, 28, 32, 38, 42, 50],
)
_COUNTS = (
    [2, 3, 4, 6, 8, 10, 12, 13, 16, 17, 19, 20, 21, 22, 24, 25, 30, 32, 36, 40, 45, 50],
    [5, 7, 9, 11, 14, 15, 18],
)


def _words(*lines: str) -> tuple[list[str], list[str]]:
    """Returns the foods of a kitchen, which orders the same ones over and over."""
    words = ", ".join(lines).split(", ")
    return words, words


_DISHES = _words(
    "rice, pasta, eggs, bread, soup, lasagne, roast, tea, potatoes, cookies, stew, gravy, noodles",
    "muffins, jam, risotto, pudding, chili, waffles, gnocchi, curry, beans, dumplings, brownies",
    "stock, quiche, polenta, porridge",
)
_GROCERIES = _words(
    "eggs, lemons, onions, carrots, apples, milk cartons, butter sticks, tomatoes, leeks, pears",
    "plums, beets, peaches, cucumbers, juice bottles, grapes, turnips, figs, cabbages, tea bags",
    "melons, rice packs, limes, peppers, bananas, yogurt cups, avocados, radishes, oranges",
)
_INGREDIENTS = _words(
    "chicken, salmon, lentils, spinach, mushrooms, pumpkin, tofu, beef, courgette, broccoli, tuna",
    "quinoa, pork, kale, celery, halloumi, lamb, asparagus, duck, cod, chickpeas, cauliflower",
    "turkey, fennel, aubergine, shrimp",
)
_UNITS = (
    [
        *(("cups", "grams"), ("ounces", "grams"), ("pints", "litres"), ("pounds", "kilograms")),
        *(("grams", "cups"), ("cups", "pints"), ("litres", "pints"), ("kilograms", "ounces")),
        *(("cups", "litres"), ("litres", "ounces")),
    ],
    [("grams", "ounces"), ("litres", "cups"), ("kilograms", "pounds")],
)

KINDS: dict[str, Kind] = {
    "set_timer": Kind(
        "Start a timer.",
        {"minutes": _INTEGER, "name": _STRING},
        {"minutes": _MINUTES, "name": _DISHES},
        (
            [
                "Set a timer for {minutes} minutes for the {name}",
                "Start a {minutes} minute timer for the {name}",
                "The {name} needs {minutes} minutes, time it",
                "Wake me in {minutes} minutes for the {name}",
                "Give me a reminder for the {name} in {minutes} minutes",
                "Remind me in {minutes} minutes that the {name} is on",
                "Put {minutes} minutes on the clock for the {name}",
                "Tell me when the {name} has had {minutes} minutes",
                "Let me know about the {name} {minutes} minutes from now",
                "{minutes} minutes for the {name}, then call me",
                "Can you watch the {name} and ring after {minutes} minutes",
            ],
            [
                "Remind me about the {name} in {minutes} minutes",
                "Count {minutes} minutes for the {name}",
                "I need a {name} timer, {minutes} minutes",
            ],
        ),
    ),
    "set_oven": Kind(
        "Heat the oven.",
        {"celsius": _INTEGER, "mode": {"enum": ["bake", "grill", "fan"]}},
        {
            "celsius": (
                [140, 150, 160, 170, 180, 190, 200, 210, 220, 240],
                [145, 155, 165, 175, 185, 195, 205, 215, 230],
            ),
            "mode": (["bake", "grill", "fan"], ["bake", "grill", "fan"]),
        },
        (
            [
                "Heat the oven to {celsius} degrees on {mode}",
                "Oven to {celsius}, {mode} please",
                "Preheat to {celsius} with {mode}",
                "Turn the oven on at {celsius} degrees, {mode} mode",
                "I want the oven at {celsius} on {mode}",
                "Set {mode} at {celsius} degrees in the oven",
                "Get the oven up to {celsius} with the {mode} setting",
            ],
            [
                "Warm up the oven: {mode}, {celsius} degrees",
                "Can you bring the oven to {celsius} in {mode} mode",
                "Switch the oven to {mode} at {celsius}",
            ],
        ),
    ),
    "convert": Kind(
        "Convert a measure.",
        {"amount": _INTEGER, "from": _STRING, "to": _STRING},
        {"amount": _COUNTS, "units": _UNITS},
        (
            [
                "How many {to} are {amount} {from}",
                "Convert {amount} {from} to {to}",
                "What is {amount} {from} in {to}",
                "{amount} {from} in {to}",
                "Give me {amount} {from} as {to}",
                "I have {amount} {from}, how much is that in {to}",
                "Turn {amount} {from} into {to}",
                "What do {amount} {from} come to if I use {to}",
                "It asks for {amount} {from}, tell me in {to}",
            ],
            [
                "How much is {amount} {from} when I measure in {to}",
                "Work out {amount} {from} in {to}",
                "The recipe says {amount} {from}, what is it in {to}",
            ],
        ),
    ),
    "add_to_list": Kind(
        "Put an item on the shopping list.",
        {"item": _STRING, "count": _INTEGER},
        {"item": _GROCERIES, "count": _COUNTS},
        (
            [
                "Add {count} {item} to the list",
                "We are out of {item}, get {count}",
                "Put {count} {item} on the shopping list",
                "I need to buy {count} {item}",
                "Write down {count} {item}",
                "Next time I shop I want {count} {item}",
                "{count} {item} for the list",
                "Do not let me forget {count} {item} at the shop",
                "Jot {count} {item} on my list, please",
            ],
            [
                "Note {count} {item} for shopping",
                "Please remember to buy {count} {item}",
                "Shopping list: {count} {item}",
            ],
        ),
    ),
    "find_recipe": Kind(
        "Find a recipe.",
        {"ingredient": _STRING, "max_minutes": _INTEGER},
        {"ingredient": _INGREDIENTS, "max_minutes": _MINUTES},
        (
            [
                "What can I cook with {ingredient} in {max_minutes} minutes",
                "Find a {ingredient} recipe under {max_minutes} minutes",
                "I have {ingredient} and {max_minutes} minutes, any ideas",
                "Show me something with {ingredient} that takes {max_minutes} minutes at most",
                "A {ingredient} dish in {max_minutes} minutes, please",
                "Dinner with {ingredient}, no longer than {max_minutes} minutes",
                "Look up {ingredient} recipes that are done in {max_minutes} minutes",
                "Which recipe with {ingredient} takes {max_minutes} minutes",
                "There is {ingredient} in the fridge and I have {max_minutes} minutes, what is for dinner",
                "Is there a {ingredient} recipe that needs {max_minutes} minutes or less",
                "Help me use up {ingredient}, I can cook for {max_minutes} minutes",
                "With {ingredient} at hand and {max_minutes} minutes left, what could I make",
            ],
            [
                "Suggest a meal with {ingredient} in {max_minutes} minutes",
                "Which {ingredient} recipe is ready within {max_minutes} minutes",
                "Got {ingredient}, have {max_minutes} minutes, what should I make",
            ],
        ),
    ),
}
_TALK = (
    [
        ("Good morning!", "Good morning! What are we cooking?"),
        ("Thanks, that was great.", "You are welcome!"),
        ("The soup was delicious.", "I am glad to hear it!"),
        ("Do you like cheese?", "I only run the kitchen, but many people do!"),
        ("I am tired today.", "Then let us keep it simple."),
        ("See you tomorrow!", "See you tomorrow!"),
        ("Who are you?", "I run the kitchen."),
        ("My guests loved the cake.", "I am glad to hear it!"),
    ],
    [
        ("Good evening!", "Good evening! What are we cooking?"),
        ("Thank you so much.", "You are welcome!"),
        ("My mother loved the pie.", "I am glad to hear it!"),
        ("Goodbye!", "See you tomorrow!"),
    ],
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is said, the functions that it needs, and the assistant's turn."""

    text: str
    names: Sequence[str]
    answer: dict[str, Any]

    def results(self) -> list[dict[str, Any]]:
        """Returns the turns after its calls: a result for each of them, and the assistant's word."""
        calls: list[dict[str, Any]] = self.answer.get("tool_calls", [])
        done = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
        return [*done, {"role": "assistant", "content": "Done."}] if done else []


class Writer:
    """Draws the exchanges of one file."""

    def __init__(self, *, held_out: bool) -> None:
        self._part = int(held_out)
        self._draw = random.Random(f"kitchen {self._part}")  # noqa: S311 - no secret
        self._seen: set[str] = set()

    def conversations(self, singles: int, pairs: int, talks: int, length: int) -> list[Line]:
        """Returns conversations of `length` exchanges.

        Args:
            singles: exchanges with each function alone.
            pairs: exchanges with two calls.
            talks: exchanges with none.
            length: exchanges in a conversation.
        """
        names = list(KINDS)
        made = [self._request([name], turn) for name in names for turn in range(singles)]
        made += [self._request(self._draw.sample(names, 2), turn) for turn in range(pairs)]
        for said, answer in _TALK[self._part][:talks]:
            made.append(Exchange(said, [], {"role": "assistant", "content": answer}))
        self._draw.shuffle(made)
        return [self._conversation(made[start : start + length]) for start in range(0, len(made), length)]

    def _request(self, names: Sequence[str], turn: int) -> Exchange:
        while True:
            asked = [self._fill(name, turn + place) for place, name in enumerate(names)]
            text = " and ".join([asked[0][0], *(after[0][0].lower() + after[0][1:] for after in asked[1:])])
            if text not in self._seen:
                break
        self._seen.add(text)
        end = "?" if text.startswith(("How", "What", "Which", "Can")) else "."
        calls = [
            {
                "id": f"call_{len(self._seen)}_{place}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for place, (name, (_, arguments)) in enumerate(zip(names, asked, strict=True), start=1)
        ]
        return Exchange(text + end, names, {"role": "assistant", "content": None, "tool_calls": calls})

    def _fill(self, name: str, turn: int) -> tuple[str, dict[str, Any]]:
        """Returns a sentence, each in its turn, with values in its gaps."""
        kind = KINDS[name]
        values: dict[str, Any] = {
            field: self._draw.choice(parts[self._part]) for field, parts in kind.values.items()
        }
        if "units" in values:
            values["from"], values["to"] = values.pop("units")
        sentences = kind.sentences[self._part]
        return sentences[turn % len(sentences)].format(**values), {
            key: values[key] for key in kind.parameters
        }

    def _conversation(self, exchanges: Sequence[Exchange]) -> Line:
        messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
        for place, exchange in enumerate(exchanges):
            messages += exchanges[place - 1].results() if place else []
            messages += [{"role": "user", "content": exchange.text}, exchange.answer]
        return {"messages": messages, "tools": [kind.tool(name) for name, kind in KINDS.items()]}


def training() -> list[Line]:
    """Returns the lines of the training file."""
    return Writer(held_out=False).conversations(singles=78, pairs=82, talks=8, length=4)


def held_out() -> list[Line]:
    """Returns the lines of the held-out file."""
    return Writer(held_out=True).conversations(singles=14, pairs=7, talks=3, length=1)


def write(path: Path, lines: Sequence[Line]) -> None:
    """Writes the lines as JSONL."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    write(FOLDER / "training.jsonl", training())
    write(FOLDER / "heldout.jsonl", held_out())
