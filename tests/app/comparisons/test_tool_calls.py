"""Comparisons pass the tools of a line to every candidate, grade its calls, and show them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI
from starlette.responses import JSONResponse, Response

from app.cli.compare_report import answer_or_error
from app.comparisons.graders.registry import parse_grader
from app.comparisons.questions import Question
from app.comparisons.report.documents import message_text, reference_text
from app.comparisons.tool_calls import call_text, turn_text
from app.core.database import Database
from app.core.errors import InvalidRequestError
from tests.app.comparisons.stub_engine import TUNED, StubEngine, add_tuned, upload
from tests.app.comparisons.test_comparisons import create, ended, get

TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Start a timer.",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}},
    },
}


def call(name: str, arguments: Any, number: str = "1") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": number, "type": "function", "function": {"name": name, "arguments": text}}


FIVE, SIX = call("set_timer", {"minutes": 5, "of": "rice"}), call("set_timer", {"minutes": 6}, "2")


def score(wanted: list[Any], given: list[Any], document: Any = "tool_calls") -> tuple[float | None, str]:
    question = Question(1, [{"role": "user", "content": "?"}], "", reference_tool_calls=wanted or None)
    grade = parse_grader(document).grade(question, "Ready.", (), given)
    return grade.score, grade.detail


@pytest.mark.parametrize(
    ("wanted", "given", "expected", "detail"),
    [
        ([FIVE], [call("set_timer", '{"of":"rice",  "minutes":5.0}', "other")], 1, ""),
        ([FIVE, SIX], [SIX, FIVE], 1, ""),
        ([FIVE, FIVE], [FIVE, FIVE], 1, ""),
        ([], [], 1, ""),
        ([FIVE, FIVE], [FIVE], 0, 'lacks set_timer(minutes=5, of="rice")'),
        ([FIVE], [], 0, 'lacks set_timer(minutes=5, of="rice")'),
        ([], [SIX], 0, "calls set_timer(minutes=6)"),
        ([FIVE], [FIVE, SIX], 0, "calls set_timer(minutes=6)"),
        (
            [SIX],
            [call("set_oven", {"minutes": 6})],
            0,
            "lacks set_timer(minutes=6); calls set_oven(minutes=6)",
        ),
        ([SIX], [call("set_timer", {"minutes": "6"})], 0, None),
        ([SIX], [call("set_timer", {"minutes": 6, "of": None})], 0, None),
        ([call("a", {"on": True})], [call("a", {"on": 1})], 0, None),
        ([call("a", {"x": [1, {"y": 2}]})], [call("a", {"x": [1.0, {"y": 2}]})], 1, ""),
        ([call("a", {"x": [1, 2]})], [call("a", {"x": [2, 1]})], 0, None),
        (
            [SIX],
            [call("set_timer", '{"minutes": 6')],
            0,
            'lacks set_timer(minutes=6); calls set_timer({"minutes": 6)',
        ),
        ([SIX], [call("set_timer", "NaN")], 0, None),
    ],
)
def test_calls_are_equal_as_json(
    wanted: list[Any], given: list[Any], expected: float, detail: str | None
) -> None:
    found = score(wanted, given)
    assert found == (expected, found[1] if detail is None else detail)


def test_the_grader_is_combined_with_others() -> None:
    for text, expected in (("Ready", 1.0), ("Soup", 0.0)):
        document = {"type": "all", "graders": ["tool_calls", {"type": "contains", "text": text}]}
        assert score([FIVE], [FIVE], document)[0] == expected
        assert score([FIVE], [SIX], document)[0] == 0.0


def test_templates_see_the_calls_of_an_answer_that_also_says_something() -> None:
    named = "{{ sample.output_tools[0].function.name }}"
    check = {"type": "string_check", "name": "a", "input": named, "reference": "set_timer", "operation": "eq"}
    combined = {"type": "multi", "name": "b", "graders": {"a": check}, "calculate_output": "a"}
    for document in (check, combined):
        assert score([FIVE], [FIVE], document) == (1, "a 1" if document is combined else "")
        assert score([FIVE], [], document)[0] is None
    turn = {"role": "user", "content": named}
    judge = {"type": "score_model", "name": "c", "model": "m", "input": [turn]}
    question = Question(1, [{"role": "user", "content": "?"}], "")
    for document in (judge, combined | {"graders": {"a": judge}}):
        [asked] = parse_grader(document).judge_requests(question, "Ready.", [FIVE])
        assert asked.messages == [{"role": "user", "content": "set_timer"}]


def test_a_file_without_calls_does_not_fit() -> None:
    plain = Question(1, [{"role": "user", "content": "?"}], "Soup.")
    with pytest.raises(InvalidRequestError, match="does not fit the file") as refused:
        parse_grader("tool_calls").check_fits([plain])
    assert refused.value.body.param == "grader"
    parse_grader("tool_calls").check_fits([plain, Question(2, [], "", reference_tool_calls=[FIVE])])


def test_calls_are_shown_as_people_write_them() -> None:
    assert call_text(call("add", {"item": "crème", "n": None})) == 'add(item="crème", n=null)'
    assert call_text(call("stop", {})) == "stop()"
    assert call_text(call("stop", "now")) == "stop(now)"
    assert turn_text("At once.", [SIX]) == "At once.\nset_timer(minutes=6)"
    assert message_text({"role": "assistant", "content": None, "tool_calls": [SIX]}) == "set_timer(minutes=6)"
    assert message_text({"role": "user", "content": "Six."}) == "Six."


def line(minutes: int) -> str:
    answer = {"role": "assistant", "content": None, "tool_calls": [call("set_timer", {"minutes": minutes})]}
    asked = {"role": "user", "content": f"Wake me in {minutes} minutes."}
    return json.dumps({"messages": [asked, answer], "tools": [TIMER], "parallel_tool_calls": False}) + "\n"


def sets_the_timer(body: dict[str, Any]) -> str | Response:
    """The fine-tuned model calls; the base talks, and once it has seen examples writes calls as text."""
    minutes = int(body["messages"][-1]["content"].split()[3])
    if body["model"] != TUNED:
        has_examples = len(body["messages"]) > 2
        return (
            json.dumps([{"arguments": {"minutes": minutes}, "name": "set_timer"}])
            if has_examples
            else "I will."
        )
    message = {
        "role": "assistant",
        "content": "At once." if minutes == 3 else None,
        "tool_calls": [
            call("set_timer", f'{{"minutes":{minutes if minutes != 4 else 5}}}', f"call-{minutes}")
        ],
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return JSONResponse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
    )


def test_a_comparison_grades_calls(client: OpenAI, database: Database, engine: StubEngine) -> None:
    add_tuned(database)
    engine.respond = sets_the_timer
    held_out = upload(client, "".join(map(line, range(1, 5))).encode())
    examples = upload(client, "".join(map(line, range(11, 22))).encode())
    created = create(
        client,
        file=held_out,
        grader="tool_calls",
        candidates=[
            {"type": "base"},
            {"type": "few_shot", "name": "shown", "examples": 2, "file": examples, "system": "Call."},
            {"type": "model", "model": TUNED, "name": "tuned"},
        ],
    )
    done = ended(client, created["id"])
    assert done["status"] == "succeeded", done
    scores = {each["name"]: each["score"] for each in done["candidates"]}
    assert scores == {"base": 0.0, "shown": 0.0, "tuned": 0.75}

    assert all(body["tools"] == [TIMER] for body in engine.bodies)
    assert all(body["parallel_tool_calls"] is False for body in engine.bodies)
    shown = next(body["messages"] for body in engine.bodies if len(body["messages"]) > 2)
    assert [turn["role"] for turn in shown] == ["system", *["user", "assistant"] * 2, "user"]
    assert all(turn["tool_calls"][0]["function"]["name"] == "set_timer" for turn in shown[2::2])

    items = get(client, created["id"], "/items")["data"]
    third = items[2]
    assert third["reference_tool_calls"] == [call("set_timer", {"minutes": 3})]
    assert reference_text(third) == "set_timer(minutes=3)"
    base, few, tuned = third["answers"]
    assert (base["text"], base["tool_calls"]) == ("I will.", None)
    assert (json.loads(few["text"])[0]["name"], few["tool_calls"]) == ("set_timer", None)
    assert tuned["tool_calls"] == [call("set_timer", '{"minutes":3}', "call-3")]
    assert tuned["text"] == "At once."
    assert answer_or_error(tuned) == "At once.\nset_timer(minutes=3)"
    assert answer_or_error(items[0]["answers"][2]) == "set_timer(minutes=1)"
    page = client.get(f"/comparisons/{created['id']}/report", cast_to=str)
    assert "set_timer(minutes=1)" in page
