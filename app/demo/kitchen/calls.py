"""The demo of function calls: the kitchen's files, and the best prompts that we could write from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.demo.demonstration import Candidate, Demonstration, Upload

FOLDER = Path(__file__).parent
TRAINING_FILE = FOLDER / "training.jsonl"
HELDOUT_FILE = FOLDER / "heldout.jsonl"
EXAMPLES = 8
PROMPT = "You run the kitchen. Answer each request with the calls that fulfil it, and nothing else."

Line = dict[str, Any]


def prompted(upload: Upload) -> list[Candidate]:
    """Returns the same examples before every request, and those most like the request."""
    examples = [example for line in _read(TRAINING_FILE) for example in _exchanges(line)]
    file = upload("examples.jsonl", "".join(json.dumps(each) + "\n" for each in examples).encode())
    asked = {"type": "few_shot", "system": PROMPT, "examples": EXAMPLES, "file": file}
    return [
        asked | {"name": f"base + {EXAMPLES} examples", "seed": 7},
        asked | {"name": f"base + {EXAMPLES} nearest examples", "selection": "nearest"},
    ]


def _read(path: Path) -> Iterator[Line]:
    for line in path.read_text("utf-8").split("\n"):
        if line:
            yield json.loads(line)


def _exchanges(line: Line) -> Iterator[Line]:
    """Yields each request of a conversation with its calls, and with their results where there are some."""
    turns: list[Line] = line["messages"]
    starts = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    for start, stop in zip(starts, [*starts[1:], len(turns)], strict=True):
        yield line | {"messages": turns[start:stop]}


KITCHEN = Demonstration(
    title="Does it call the right functions?",
    training_file=TRAINING_FILE,
    heldout_file=HELDOUT_FILE,
    suffix="kitchen",
    hyperparameters={"n_epochs": 3, "batch_size": 4, "learning_rate": 1e-3},
    grader="tool_calls",
    max_answer_tokens=96,  # the longest correct answer has 80
    alias="kitchen:production",
    rules={"min_score": 0.9, "beats": ["base", "prompted"]},
    prompted=prompted,
)
