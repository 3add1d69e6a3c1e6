"""A held-out file is read as questions, and those that a training file has, too, are recognised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.comparisons.questions import answer_text, read_question_keys, read_questions, same_question_key
from app.core.errors import InvalidRequestError

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def written(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_the_last_answer_is_the_reference_and_the_rest_the_question(tmp_path: Path) -> None:
    messages = turns("Hi", "Hello!", "What is 2+2?", "4")
    messages[1]["weight"] = 0  # type: ignore[assignment]
    line = {"messages": messages, "metadata": {"topic": "sums", "level": 3, "hard": False, "note": None}}
    questions = read_questions(written(tmp_path, "", line, {"messages": turns("Hi", "Ho")}))
    assert [question.line for question in questions] == [2, 3]
    first = questions[0]
    assert first.messages == turns("Hi", "Hello!", "What is 2+2?")
    assert first.reference == "4"
    assert first.metadata == {"topic": "sums", "level": "3", "hard": "false"}
    assert questions[1].metadata == {}


@pytest.mark.parametrize(
    "line",
    [
        {"instruction": "Which?", "output": "This.", "system": "Be brief."},
        {
            "conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "This."}],
            "system": "Be brief.",
            "tools": "[]",
        },
    ],
)
def test_questions_may_be_in_any_chat_format(tmp_path: Path, line: dict[str, Any]) -> None:
    question = read_questions(written(tmp_path, line | {"metadata": {"topic": "x"}}))[0]
    assert question.messages == [{"role": "system", "content": "Be brief."}, *turns("Which?")]
    assert (question.reference, question.metadata, question.tools) == ("This.", {"topic": "x"}, None)


def test_a_reference_of_tool_calls_is_read_as_json(tmp_path: Path) -> None:
    messages = [*turns("Weather in Rome?"), {"role": "assistant", "tool_calls": [CALL]}]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    question = read_questions(written(tmp_path, {"messages": messages, "tools": tools}))[0]
    assert json.loads(question.reference) == [{"name": "weather", "arguments": {"city": "Rome"}}]
    assert question.reference_tool_calls == [CALL]
    assert question.tools == tools
    assert answer_text(None, [CALL]) == question.reference
    assert answer_text("<think>\nHm.\n</think>\n\nLeek.", None) == "Leek."
    assert answer_text("Hm.</think>Leek.", None) == "Leek."
    assert answer_text([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], None) == "ab"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Line 2"),
        ({"prompt": "a", "completion": "b"}, "Line 2 is no chat"),
        ({"messages": turns("only a question")}, "Line 2 has no assistant turn"),
        (
            {"messages": [{"role": "assistant", "content": "only an answer"}]},
            "Line 2 has an answer, and no question",
        ),
        ({"messages": turns("a", "b"), "metadata": {"x": [1]}}, "Line 2 has metadata"),
        ({"messages": turns("a", "b"), "metadata": "x"}, "Line 2 has metadata"),
        ({"messages": turns("a", "b"), "metadata": {"x": "y" * 600}}, "Line 2 has metadata longer"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as refused:
        read_questions(written(tmp_path, {"messages": turns("a", "b")}, line), param="heldout")
    assert refused.value.body.param == "heldout"


def test_an_empty_file_has_no_questions(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        read_questions(written(tmp_path, ""))


def test_questions_that_a_training_file_answers_are_recognised(tmp_path: Path) -> None:
    keys = read_question_keys(
        written(
            tmp_path,
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    *turns("  How DO I\nclean it? ", "So."),
                ]
            },
            {"messages": turns("First", "one", "Second", "two")},
            {"prompt": "What is ﬁne?", "completion": "This."},
            {
                "input": {"messages": turns("Which?")},
                "preferred_output": [{"role": "assistant", "content": "This."}],
                "non_preferred_output": [{"role": "assistant", "content": "That."}],
            },
            {"instruction": "Translate.", "input": "Ciao", "output": "Hello"},
            {"instruction": "Say hello.", "output": "Hello"},
            {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
            "no JSON at all",
            '"text"',
            [1, 2],
            {"input": {"messages": 5}},
            {"input": {"messages": [1]}},
            {"messages": [1]},
        )
    )
    known = ["how do i clean it?", "What is fine?", "which?", "Translate. ciao", "say hello.", "Who?"]
    assert all(same_question_key(turns(text)) in keys for text in known)
    assert same_question_key(turns("First", "anything", "Second")) in keys
    assert same_question_key(turns("First")) in keys
    assert same_question_key(turns("How do I clean them?")) not in keys
    assert same_question_key(turns("Second")) not in keys
