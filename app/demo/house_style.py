"""The demo of a house style: the help desk's files, and the best prompts that we could write from them.

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

from app.demo.demonstration import Candidate, Demonstration, Upload

FOLDER = Path(__file__).parent
TRAINING_FILE = FOLDER / "training.jsonl"
HELDOUT_FILE = FOLDER / "heldout.jsonl"
STYLE_GUIDE = FOLDER / "style_guide.md"
EXAMPLES_PROMPT = "You are the Larkspoon help desk. Answer with one line in the house format."

GUIDED_EXAMPLES = 8
MOST_EXAMPLES = 41
"""The most examples that fit the base model's context."""

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


def prompted(upload: Upload) -> list[Candidate]:
    """Returns the style guide with examples, as many examples as fit, and those most like the question."""
    training = load_questions(TRAINING_FILE)
    return [
        {
            "type": "few_shot",
            "name": f"base + style guide + {GUIDED_EXAMPLES} examples",
            "system": guided_prompt(),
            "examples": GUIDED_EXAMPLES,
            "file": upload("few.jsonl", to_jsonl(choose_examples(training, GUIDED_EXAMPLES))),
        },
        {
            "type": "few_shot",
            "name": f"base + {MOST_EXAMPLES} examples",
            "system": EXAMPLES_PROMPT,
            "examples": MOST_EXAMPLES,
            "file": upload("many.jsonl", to_jsonl(choose_examples(training, MOST_EXAMPLES))),
        },
        {
            "type": "few_shot",
            "name": f"base + {GUIDED_EXAMPLES} nearest examples",
            "system": EXAMPLES_PROMPT,
            "examples": GUIDED_EXAMPLES,
            "file": upload("all.jsonl", TRAINING_FILE.read_bytes()),
            "selection": "nearest",
        },
    ]


HOUSE_STYLE = Demonstration(
    title="Is fine-tuning worth it here?",
    training_file=TRAINING_FILE,
    heldout_file=HELDOUT_FILE,
    suffix="larkspoon",
    hyperparameters={"n_epochs": 3},
    grader="exact_match",
    max_answer_tokens=32,  # the longest correct answer has 25
    alias="house-style:production",
    rules={"min_score": 0.8, "beats": ["base", "prompted"]},
    prompted=prompted,
)
