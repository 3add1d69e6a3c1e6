"""The demo's files, and the best prompts that we could write from them.

Of a dozen prompts tried on training questions these two did best: the style guide with a few examples (more
examples beside it, or the guide in the user's turn, did worse), and as many examples as the context holds.
A third prompt shows the examples that are most like the question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TRAINING_FILE = FOLDER / "training.jsonl"
HELDOUT_FILE = FOLDER / "heldout.jsonl"
STYLE_GUIDE = FOLDER / "style_guide.md"
EXAMPLES_PROMPT = "You are the Larkspoon help desk. Answer with one line in the house format."

Turn = dict[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to the answer, and the reference answer."""

    turns: list[Turn]
    reference: str


def load_questions(path: Path) -> list[Question]:
    """Returns the file's conversations, each with its last turn as the reference."""
    questions: list[Question] = []
    for line in path.read_text("utf-8").split("\n"):
        if line:
            conversation: dict[str, Any] = json.loads(line)
            *turns, answer = conversation["messages"]
            questions.append(Question(turns, answer["content"]))
    return questions


def guided_prompt() -> str:
    """Returns a system prompt with the whole style guide and instructions."""
    return (
        f"{STYLE_GUIDE.read_text('utf-8').strip()}\n\n"
        "Find the product and the topic of the customer's question, then copy the one reply that fits."
    )


def choose_examples(training: list[Question], count: int) -> list[Question]:
    """Chooses examples with as many different answers as possible before any answer is repeated."""
    by_answer: dict[str, list[Question]] = {}
    for question in training:
        by_answer.setdefault(question.reference, []).append(question)
    answers = [by_answer[reference] for reference in sorted(by_answer)]
    chosen: list[Question] = []
    for turn in range(-(-count // len(answers))):
        wanted = min(count - len(chosen), len(answers))
        chosen += [answers[position * len(answers) // wanted][turn] for position in range(wanted)]
    return chosen


def to_jsonl(examples: Sequence[Question]) -> bytes:
    """Returns the examples as JSONL conversations of the customer's last turn and the answer."""
    answered = [
        {"messages": [example.turns[-1], {"role": "assistant", "content": example.reference}]}
        for example in examples
    ]
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in answered).encode()
