"""The demo's calls are what its rules write, and the held-out requests are others than those of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.comparisons.graders.registry import parse_grader
from app.comparisons.questions import read_question_keys, read_questions, same_question_key
from app.datasets.formats import parse_line
from app.demo.demonstration import Demonstration
from app.demo.house_style import HOUSE_STYLE
from app.demo.kitchen import generate
from app.demo.kitchen.calls import KITCHEN


def test_the_files_are_those_that_the_rules_write(tmp_path: Path) -> None:
    for path, lines in (
        (KITCHEN.training_file, generate.training()),
        (KITCHEN.heldout_file, generate.held_out()),
    ):
        generate.write(tmp_path / path.name, lines)
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert [line["tools"] for line in generate.held_out()] == [generate.training()[0]["tools"]] * 80


def test_held_out_sentences_and_values_are_others() -> None:
    shared = {"mode", "name", "item", "ingredient"}
    for kind in generate.KINDS.values():
        assert not set(kind.sentences[0]) & set(kind.sentences[1])
        for field, (trained, held_out) in kind.values.items():
            assert field in shared or not set(trained) & set(held_out), field


@pytest.mark.parametrize("shown", [HOUSE_STYLE, KITCHEN], ids=lambda shown: shown.suffix)
def test_no_held_out_question_is_trained_on(shown: Demonstration) -> None:
    questions = read_questions(shown.heldout_file)
    assert len(questions) == 80
    assert not {same_question_key(each.messages) for each in questions} & read_question_keys(
        shown.training_file
    )
    parse_grader(shown.grader).check_fits(questions)


def test_prompts_are_candidates_with_examples_of_their_own() -> None:
    files: list[bytes] = []

    def upload(_: str, content: bytes) -> str:
        files.append(content)
        return f"file-{len(files)}"

    candidates = KITCHEN.prompted(upload)
    assert [each["file"] for each in candidates] == ["file-1", "file-1"]
    examples = [json.loads(line) for line in files[0].splitlines()]
    assert len(examples) == 480
    for example in examples:
        assert [turn["role"] for turn in example["messages"]][:2] == ["user", "assistant"]
        assert parse_line(json.dumps(example).encode())
    called: list[Any] = [turn["messages"][1].get("tool_calls") or [] for turn in examples]
    assert {len(calls) for calls in called} == {0, 1, 2}
