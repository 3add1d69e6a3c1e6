"""The demo's files, and the best prompt that we could write from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TRAINING_FILE = FOLDER / "training.jsonl"
HELDOUT_FILE = FOLDER / "heldout.jsonl"
STYLE_GUIDE = FOLDER / "style_guide.md"

Turn = dict[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to the answer, and the answer that is right."""

    turns: list[Turn]
    reference: str


def load_questions(path: Path) -> list[Question]:
    """The file's conversations, their last turn taken off as the reference."""
    questions: list[Question] = []
    for line in path.read_text("utf-8").split("\n"):
        if line:
            conversation: dict[str, Any] = json.loads(line)
            *turns, answer = conversation["messages"]
            questions.append(Question(turns, answer["content"]))
    return questions


def prompted_turns(question: Question, examples: list[Question]) -> list[Turn]:
    """The question as a prompt alone can best ask it: instructions, the whole style guide, examples."""
    system = (
        f"{STYLE_GUIDE.read_text('utf-8').strip()}\n\n"
        "Find the product and the topic of the customer's question, then copy the one reply that fits."
    )
    shown = [turn for example in examples for turn in (example.turns[-1], _answer(example))]
    return [{"role": "system", "content": system}, *shown, question.turns[-1]]


def choose_examples(training: list[Question], count: int) -> list[Question]:
    """Examples with answers as different as can be: evenly spread over the distinct ones."""
    by_answer = {question.reference: question for question in reversed(training)}
    distinct = [by_answer[reference] for reference in sorted(by_answer)]
    return [distinct[position * len(distinct) // count] for position in range(count)]


def _answer(example: Question) -> Turn:
    return {"role": "assistant", "content": example.reference}
