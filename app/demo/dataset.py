"""The demo's files, and the best prompts that we could write from them.

Of a dozen prompts tried on training questions these two did best: the style guide with a few examples (more
examples beside it, or the guide in the user's turn, did worse), and as many examples as the context holds.
"""

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


def guided_turns(question: Question, examples: list[Question]) -> list[Turn]:
    """The question as a prompt with everything in it: instructions, the whole style guide, examples."""
    system = (
        f"{STYLE_GUIDE.read_text('utf-8').strip()}\n\n"
        "Find the product and the topic of the customer's question, then copy the one reply that fits."
    )
    return [{"role": "system", "content": system}, *_shown(examples), question.turns[-1]]


def exemplified_turns(question: Question, examples: list[Question]) -> list[Turn]:
    """The question as a prompt that is all examples."""
    system = "You are the Larkspoon help desk. Answer with one line in the house format."
    return [{"role": "system", "content": system}, *_shown(examples), question.turns[-1]]


def choose_examples(training: list[Question], count: int) -> list[Question]:
    """Examples with answers as different as can be: one of each answer, then a second one of some, …"""
    by_answer: dict[str, list[Question]] = {}
    for question in training:
        by_answer.setdefault(question.reference, []).append(question)
    answers = [by_answer[reference] for reference in sorted(by_answer)]
    chosen: list[Question] = []
    for turn in range(-(-count // len(answers))):
        wanted = min(count - len(chosen), len(answers))
        chosen += [answers[position * len(answers) // wanted][turn] for position in range(wanted)]
    return chosen


def _shown(examples: list[Question]) -> list[Turn]:
    return [turn for example in examples for turn in (example.turns[-1], _answer(example))]


def _answer(example: Question) -> Turn:
    return {"role": "assistant", "content": example.reference}
