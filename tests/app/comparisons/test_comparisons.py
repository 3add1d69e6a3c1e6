"""`/v1/comparisons` over HTTP and the official client, on both databases, with a stand-in engine."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx2
import openai
import psutil
import pytest
import regex
from openai import OpenAI

from app.comparisons import validation
from app.comparisons.results import ComparisonResults
from app.core.database import Database
from tests.app.comparisons.stub_engine import (
    TUNED,
    StubEngine,
    add_tuned,
    create,
    ended,
    get,
    line,
    lines,
    number_asked,
    question,
    reference,
    refusal,
    upload,
)
from tests.support.service import API_KEY, BASE_MODEL, OTHER_KEY, Service
from tests.support.usage import totals, usage
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database

HELD_OUT = range(100, 140)


def test_from_a_file_to_a_verdict(
    client: OpenAI, http: httpx2.Client, database: Database, engine: StubEngine
) -> None:
    add_tuned(database)
    held_out = upload(client, lines(HELD_OUT, metadata={"kitchen": "north"}))
    examples = upload(client, lines(range(50)), "fine-tune")
    created = create(
        client,
        file=held_out,
        name="soup",
        metadata={"team": "kitchen"},
        candidates=[
            {"type": "base"},
            {"type": "prompt", "system": "You know all pots."},
            {"type": "few_shot", "examples": 2, "file": examples, "name": "shown"},
            {"type": "model", "model": TUNED},
        ],
    )
    assert created["id"].startswith("cmp_")
    assert (created["object"], created["status"], created["results"]) == ("comparison", "queued", None)
    assert created["progress"] == {"done": 0, "total": 160}
    done = ended(client, created["id"])
    assert done["status"] == "succeeded", done
    assert done["progress"] == {"done": 160, "total": 160}
    assert (done["name"], done["metadata"], done["questions"]) == ("soup", {"team": "kitchen"}, 40)

    scores = {each["name"]: (each["type"], each["score"], each["failures"]) for each in done["candidates"]}
    assert scores == {
        "base": ("base", 0.0, 0),
        "prompt": ("prompt", 0.25, 0),
        "shown": ("few_shot", 0.25, 0),
        TUNED: ("model", 1.0, 0),
    }
    assert done["verdict"]["code"] == "fine_tuning_wins"
    assert done["verdict"] == done["results"]["verdict"]
    results = ComparisonResults.model_validate(done["results"])
    assert len(results.pairs) == 6
    assert [each.tokens.input for each in results.candidates] == [400, 800, 2000, 400]
    assert all(each.latency is not None and each.latency.p50 > 0 for each in results.candidates)
    assert results.candidates[0].slices[0].value == "north"

    asked = Counter((body["model"], len(body["messages"]), number_asked(body)) for body in engine.bodies)
    assert set(asked.values()) == {1}
    prompted = next(body for body in engine.bodies if body["messages"][0]["role"] == "system")
    assert prompted["messages"][0]["content"] == "You know all pots."
    assert (prompted["temperature"], prompted["max_tokens"]) == (0, 256)
    shown = [body["messages"][:-1] for body in engine.bodies if len(body["messages"]) == 5]
    assert len(shown) == 40
    assert all(turns == shown[0] for turns in shown)
    assert [turn["role"] for turn in shown[0]] == ["user", "assistant"] * 2
    assert 1 < engine.most_in_flight <= 16
    wait_until(lambda: totals(usage(http)) == (160, 3600, 480), "usage is written")


def test_items_page_through_questions_with_every_answer(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    add_tuned(database)
    held_out = upload(client, lines(range(5)))
    created = create(
        client, file=held_out, candidates=[{"type": "base"}, {"type": "model", "model": TUNED, "name": "t"}]
    )
    ended(client, created["id"])
    first = get(client, created["id"], "/items", limit=3)
    rest = get(client, created["id"], "/items", limit=3, after=first["last_id"])
    assert (first["has_more"], rest["has_more"]) == (True, False)
    items = first["data"] + rest["data"]
    assert [(item["line"], item["reference"]) for item in items] == [(n + 1, reference(n)) for n in range(5)]
    assert items[2]["messages"] == [{"role": "user", "content": question(2)}]
    base, tuned = items[2]["answers"]
    assert (base["candidate"], base["text"], base["score"], base["error"]) == ("base", "Stew.", 0.0, None)
    assert (tuned["candidate"], tuned["text"], tuned["score"]) == ("t", "Soup 2.", 1.0)
    assert (tuned["input_tokens"], tuned["output_tokens"]) == (10, 3)
    assert tuned["latency"] > 0


def test_lists_belong_to_their_project(
    service: Service, client: OpenAI, http: httpx2.Client, engine: StubEngine
) -> None:
    held_out = upload(client, lines(range(3)))
    ids = [create(client, file=held_out, candidates=[{"type": "base"}])["id"] for _ in range(3)]
    page = http.get("/v1/comparisons", params={"limit": 2}).json()
    assert [each["id"] for each in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    with service.http(OTHER_KEY) as other:
        assert other.get("/v1/comparisons").json()["data"] == []
        for path in ("", "/items"):
            response = other.get(f"/v1/comparisons/{ids[0]}{path}")
            assert (response.status_code, response.json()["error"]["code"]) == (404, "comparison_not_found")
        assert other.post(f"/v1/comparisons/{ids[0]}/cancel").status_code == 404


def test_what_was_trained_on_is_left_out_and_reported(client: OpenAI, engine: StubEngine) -> None:
    held_out = upload(client, lines(range(8)))
    training = upload(client, line(3).replace("What", "WHAT ").encode() + lines(range(5, 20)), "fine-tune")
    few_shot = {"type": "few_shot", "examples": 1, "file": training}
    created = create(client, file=held_out, candidates=[few_shot])
    excluded = [{"line": number, "training_file": training} for number in (4, 6, 7, 8)]
    assert created["excluded"] == {"count": 4, "lines": excluded, "unchecked_files": []}
    done = ended(client, created["id"])
    assert (done["questions"], done["candidates"][0]["questions"]) == (4, 4)
    assert {number_asked(body) for body in engine.bodies} == {0, 1, 2, 4}
    all_asked = create(client, file=held_out, candidates=[few_shot], exclude_training_overlap=False)
    assert (all_asked["questions"], all_asked["excluded"]["count"]) == (8, 0)
    named = create(client, file=held_out, candidates=[{"type": "base"}], training_file=training)
    assert named["excluded"]["count"] == 4


def test_prompts_with_the_same_beginning_are_asked_together_once_it_is_cached(
    client: OpenAI, engine: StubEngine
) -> None:
    examples = upload(client, lines(range(5)))
    few_shot = {"type": "few_shot", "examples": 2, "file": examples}
    candidates = [{"type": "base"}, {"type": "prompt", "system": "You know."}, few_shot]
    held_out = upload(client, lines(range(10, 13)))
    ended(client, create(client, file=held_out, candidates=candidates, concurrency=1)["id"])
    assert [len(body["messages"]) for body in engine.bodies] == [1, 2, 5, 1, 1, 2, 2, 5, 5]


def test_the_nearest_examples_are_shown_the_most_alike_last(client: OpenAI, engine: StubEngine) -> None:
    held_out = upload(client, lines(range(200, 203)))
    pool = [line(number) for number in (7, 20, 2010, 9)]
    pool.insert(1, line(201).replace("What is in", "What was in"))
    examples = upload(client, "".join(pool).encode(), "evals")
    few_shot = {"type": "few_shot", "examples": 2, "file": examples, "selection": "nearest"}
    ended(client, create(client, file=held_out, candidates=[few_shot])["id"])
    shown = {
        number_asked(body): [turn["content"] for turn in body["messages"][:-1] if turn["role"] == "user"]
        for body in engine.bodies
    }
    assert [len(questions) for questions in shown.values()] == [2, 2, 2]
    assert shown[201] != shown[202] or shown[200] != shown[201]
    assert all("pot number 20" in question for questions in shown.values() for question in questions)


def test_what_a_model_refuses_counts_as_failed(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    add_tuned(database)
    engine.respond = lambda body: refusal() if number_asked(body) == 2 else reference(number_asked(body))
    held_out = upload(client, lines(range(4)))
    created = create(client, file=held_out, candidates=[{"type": "base"}, {"type": "model", "model": TUNED}])
    done = ended(client, created["id"])
    assert [(each["questions"], each["failures"], each["score"]) for each in done["candidates"]] == [
        (4, 1, 0.75)
    ] * 2
    item = get(client, created["id"], "/items")["data"][2]
    assert [(each["text"], each["score"]) for each in item["answers"]] == [(None, None)] * 2
    assert "maximum context length" in item["answers"][0]["error"]
    assert len(engine.bodies) == 8


def test_the_general_questions_guard_against_forgetting(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    add_tuned(database)

    def knows(body: dict[str, Any]) -> str:
        number = number_asked(body)
        is_general = number >= 1000
        return reference(number) if is_general != (body["model"] == TUNED) else "Stew."

    engine.respond = knows
    held_out, general = upload(client, lines(range(30))), upload(client, lines(range(1000, 1040)))
    created = create(
        client, file=held_out, regression_file=general, candidates=[{"type": "model", "model": TUNED}]
    )
    assert created["progress"]["total"] == 30 + 2 * 40
    done = ended(client, created["id"])
    [lost] = done["results"]["regression"]
    assert (lost["candidate"], lost["base_score"], lost["score"]) == (TUNED, 1.0, 0.0)
    assert [each["name"] for each in done["candidates"]] == [TUNED]
    items = get(client, created["id"], "/items", limit=100)["data"]
    assert [item["file"] for item in items] == [held_out] * 30 + [general] * 40
    assert [each["candidate"] for each in items[-1]["answers"]] == [TUNED, BASE_MODEL]


def test_a_judge_is_asked_through_the_same_gate(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    judge = add_tuned(database, f"ft:{BASE_MODEL}:default::judge")

    def knows(body: dict[str, Any]) -> str:
        if body["model"] != judge:
            return reference(number_asked(body)) if number_asked(body) else "Stew."
        return "I cannot say." if "> Stew." in body["messages"][-1]["content"] else "Fine.\nScore: 5"

    engine.respond = knows
    held_out = upload(client, lines(range(5)))
    created = create(
        client, file=held_out, candidates=[{"type": "base"}], grader={"type": "model", "model": judge}
    )
    done = ended(client, created["id"])
    [base] = done["candidates"]
    assert (base["score"], base["failures"]) == (0.8, 1)
    first = get(client, created["id"], "/items")["data"][0]["answers"][0]
    assert (first["text"], first["score"]) == ("Stew.", None)
    assert "I cannot say." in first["error"]
    assert Counter(body["model"] for body in engine.bodies) == {BASE_MODEL: 5, judge: 5}


def test_graders_of_openai_grade_comparisons(client: OpenAI, database: Database, engine: StubEngine) -> None:
    judge = add_tuned(database, f"ft:{BASE_MODEL}:default::judge")
    template = "{{ item.topic }}: {{ sample.output_text }}, not {{ item.reference }}"
    turn = {"role": "user", "content": template}

    def knows(body: dict[str, Any]) -> str:
        if body["model"] != judge:
            return reference(number_asked(body)) if number_asked(body) else "Stew."
        is_right = body["messages"][0]["content"].startswith("pots: Soup")
        return json.dumps({"result": 10 if is_right else 4})

    engine.respond = knows
    check = {
        "type": "string_check",
        "name": "right",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference }}",
        "operation": "eq",
    }
    taste = {"type": "score_model", "name": "taste", "model": judge, "input": [turn], "range": [0, 10]}
    formula = "0.5 * right + 0.05 * taste"
    multi = {
        "type": "multi",
        "name": "both",
        "graders": {"right": check, "taste": taste},
        "calculate_output": formula,
    }
    held_out = upload(client, lines(range(4), metadata={"topic": "pots"}))
    created = create(client, file=held_out, candidates=[{"type": "base"}], grader=multi)
    [base] = ended(client, created["id"])["candidates"]
    assert base["score"] == pytest.approx((1 + 1 + 1 + 0.2) / 4)
    assert Counter(body["model"] for body in engine.bodies) == {BASE_MODEL: 4, judge: 4}
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, file=upload(client, lines(range(4))), candidates=[{"type": "base"}], grader=multi)
    assert refused.value.param == "grader.graders.taste"
    assert "no item.topic" in refused.value.message


def test_an_alias_is_resolved_when_the_comparison_is_created(
    client: OpenAI, database: Database, http: httpx2.Client, engine: StubEngine
) -> None:
    add_tuned(database)
    http.put("/v1/aliases/soup:live", json={"model": TUNED}).raise_for_status()
    held_out = upload(client, lines(range(2)))
    created = create(client, file=held_out, candidates=[{"type": "model", "model": "soup:live"}])
    [candidate] = created["candidates"]
    assert (candidate["name"], candidate["model"], candidate["requested_model"]) == (
        "soup:live",
        TUNED,
        "soup:live",
    )
    assert ended(client, created["id"])["candidates"][0]["score"] == 1.0


def test_the_base_may_go_by_an_alias(
    client: OpenAI, database: Database, http: httpx2.Client, engine: StubEngine
) -> None:
    add_tuned(database)
    split = [{"model": BASE_MODEL, "weight": 1}, {"model": TUNED, "weight": 1}]
    for name, target in (
        ("plain", {"model": BASE_MODEL}),
        ("soup", {"model": TUNED}),
        ("two", {"split": split}),
    ):
        http.put(f"/v1/aliases/{name}", json=target).raise_for_status()
    held_out = upload(client, lines(range(2)))
    created = create(client, model="plain", file=held_out, candidates=[{"type": "base"}])
    assert created["model"] == BASE_MODEL
    assert ended(client, created["id"])["candidates"][0]["model"] == BASE_MODEL
    for name, code in (("soup", "invalid_value"), (TUNED, "invalid_value"), ("two", "alias_is_split")):
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, model=name, file=held_out, candidates=[{"type": "base"}])
        assert (refused.value.code, refused.value.param) == (code, "model")


def test_a_comparison_is_created_once(http: httpx2.Client, client: OpenAI, engine: StubEngine) -> None:
    request = {"file": upload(client, lines(range(2))), "model": BASE_MODEL, "grader": "exact_match"}
    request["candidates"] = [{"type": "base"}]
    sent = [
        http.post("/v1/comparisons", json=request, headers={"idempotency-key": "once"}).json()["id"]
        for _ in range(2)
    ]
    assert sent[0] == sent[1]
    assert len(http.get("/v1/comparisons").json()["data"]) == 1


FEW_SHOT = {"type": "few_shot", "examples": 2, "file": "{file}"}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"file": "file-none"}, 404, "file"),
        ({"file": "{theirs}"}, 404, "file"),
        ({"file": "{empty}"}, 400, "file"),
        ({"file": "{words}"}, 400, "file"),
        ({"model": "gpt-9"}, 404, "model"),
        ({"candidates": []}, 400, "candidates"),
        ({"candidates": [{"type": "chef"}]}, 400, "candidates[0].type"),
        ({"candidates": [{"type": "base"}, {"type": "prompt"}]}, 400, "candidates[1].system"),
        ({"candidates": [{"type": "model", "model": ""}]}, 400, "candidates[0].model"),
        ({"candidates": [{"type": "model", "name": "x"}]}, 400, "candidates[0].model"),
        ({"candidates": [{"type": "base", "model": "x"}]}, 400, "candidates[0].model"),
        (
            {"candidates": [{"type": "base"}, {"type": "model", "model": "ft:none"}]},
            404,
            "candidates[1].model",
        ),
        ({"candidates": [{"type": "model", "model": "ft:deleted"}]}, 404, "candidates[0].model"),
        ({"candidates": [{"type": "model", "model": "ft:bad"}]}, 424, "candidates[0].model"),
        ({"candidates": [{"type": "checkpoints", "job": "ftjob-none"}]}, 404, "candidates[0].job"),
        ({"candidates": [FEW_SHOT | {"file": "file-none"}]}, 404, "candidates[0].file"),
        ({"candidates": [FEW_SHOT | {"file": "{other}", "examples": 99}]}, 400, "candidates[0].examples"),
        ({"candidates": [FEW_SHOT | {"file": "{words}"}]}, 400, "candidates[0].file"),
        ({"candidates": [FEW_SHOT]}, 400, "file"),
        (
            {"candidates": [{"type": "external", "base_url": "http://127.0.0.1:9", "model": "m"}]},
            400,
            "candidates[0].base_url",
        ),
        (
            {"candidates": [{"type": "base", "name": "x"}, {"type": "base", "name": "x"}]},
            400,
            "candidates[1].name",
        ),
        ({"grader": "taste"}, 400, "grader"),
        ({"grader": {"type": "regex", "pattern": "("}}, 400, "grader.pattern"),
        ({"grader": {"type": "regex", "pattern": "(?:(?:a?){1000}){1000}b"}}, 400, "grader.pattern"),
        ({"grader": {"type": "json_match", "fields": [{}]}}, 400, "grader.fields"),
        (
            {"grader": {"type": "json_match", "match_reference": False, "schema": {"$ref": "//["}}},
            400,
            "grader.schema",
        ),
        ({"grader": "json_match"}, 400, "grader"),
        ({"grader": {"type": "model", "model": "ft:none"}}, 404, "grader.model"),
        (
            {"grader": {"type": "all", "graders": ["contains", {"type": "model", "model": "ft:none"}]}},
            404,
            "grader.graders[1].model",
        ),
        (
            {
                "grader": {
                    "type": "label_model",
                    "name": "tone",
                    "model": "ft:none",
                    "input": [{"role": "user", "content": "x"}],
                    "labels": ["a"],
                    "passing_labels": ["a"],
                }
            },
            404,
            "grader.model",
        ),
        ({"training_file": "file-none"}, 404, "training_file"),
        ({"training_file": "{file}"}, 400, "file"),
        ({"regression_file": "{other}"}, 400, "regression_file"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"concurrency": 0}, 400, "concurrency"),
        ({"chef": 1}, 400, "chef"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    client: OpenAI,
    other_client: OpenAI,
    http: httpx2.Client,
    database: Database,
    change: dict[str, Any],
    status: int,
    param: str,
) -> None:
    add_tuned(database, "ft:deleted", deleted_at=1.0)
    add_tuned(database, "ft:bad", quarantine_reason="It burns.")
    contents = {
        "file": lines(range(4)),
        "other": lines(range(50, 54)),
        "empty": b"\n",
        "words": b'{"prompt": "a", "completion": "b"}\n',
    }
    files = {name: upload(client, content) for name, content in contents.items()}
    files["theirs"] = upload(other_client, lines(range(4)))
    request = {
        "file": "{file}",
        "model": BASE_MODEL,
        "grader": "exact_match",
        "candidates": [{"type": "base"}],
    }
    text = json.dumps(request | change)
    for name, file_id in files.items():
        text = text.replace(f"{{{name}}}", file_id)
    response = http.post("/v1/comparisons", content=text, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param, response.text
    assert http.get("/v1/comparisons").json()["data"] == []


BUSY = {"type": "regex", "pattern": "(a|aa)+$"}
"""Takes long on `busy_lines`, and on none longer than a pattern may."""


def busy_lines(count: int) -> bytes:
    """Questions on each of whose references `BUSY` takes a hundredth of a second or two."""
    pattern = regex.compile(BUSY["pattern"])
    reference = "aaaaaaaa!"
    while True:
        started = time.thread_time()  # without the time in which others had the core
        with suppress(TimeoutError):
            pattern.search(reference, timeout=0.1)
        if time.thread_time() - started > 0.01:
            break
        reference = f"a{reference}"
    texts = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": reference}]
    return (json.dumps({"messages": texts}) + "\n").encode() * count


def test_answers_that_a_schema_cannot_be_applied_to_are_not_graded(
    client: OpenAI, engine: StubEngine
) -> None:
    levels = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    schema = {
        "$defs": levels | {"d30": {}},
        "if": {"type": "array"},
        "then": {"$ref": "#/$defs/d0"},
        "multipleOf": 0.5,
    }
    says = ["{}", "[1]", "9" * 400, "{}"]
    engine.respond = lambda body: says[number_asked(body)]
    grader = {"type": "json_match", "schema": schema, "match_reference": False}
    held_out = upload(client, lines(range(4)))
    created = create(client, file=held_out, candidates=[{"type": "base"}], grader=grader)
    [result] = ended(client, created["id"])["candidates"]
    assert (result["questions"], result["failures"]) == (4, 2)
    answers = [item["answers"][0] for item in get(client, created["id"], "/items")["data"]]
    assert [answer["score"] for answer in answers] == [1, None, None, 1]
    assert "took longer than 1 s" in answers[1]["error"]
    assert "cannot be applied" in answers[2]["error"]


def test_a_grader_that_takes_long_on_the_file_is_refused(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "FIT_SECONDS", 1.5)
    held_out = upload(client, busy_lines(5000))
    with pytest.raises(openai.BadRequestError, match=r"takes longer than 1\.5 s") as refused:
        create(client, file=held_out, candidates=[{"type": "base"}], grader=BUSY)
    assert (refused.value.code, refused.value.param) == ("invalid_grader", "grader")


def test_a_client_that_hangs_up_ends_the_look_into_its_files(service: Service, client: OpenAI) -> None:
    held_out = upload(client, busy_lines(5000))
    create(client, file=held_out, candidates=[{"type": "base"}])
    before = children()
    request = {"model": BASE_MODEL, "file": held_out, "candidates": [{"type": "base"}], "grader": BUSY}
    body = json.dumps(request).encode()
    head = f"POST /v1/comparisons HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    host, _, port = service.url.removeprefix("http://").partition(":")

    def computing() -> list[int]:
        return [pid for pid, seconds in children().items() if seconds > before.get(pid, 0.0) + 0.5]

    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        [child] = wait_until(computing, "a child computes")
    wait_until(lambda: child not in children(), "the child that computed ends")


def children() -> dict[int, float]:
    """The processes that compute for the services of this one, or wait to, each with its processor time."""
    found: dict[int, float] = {}
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "anyio.to_process" in child.cmdline():
                found[child.pid] = child.cpu_times().user
    return found


def test_lines_that_are_no_examples_are_trained_on_by_nobody(client: OpenAI, engine: StubEngine) -> None:
    training = b'{"input": {"messages": 5}}\n"abc"\n[1, 2]\n' + line(1).encode()
    held_out = upload(client, lines(range(4)))
    file = upload(client, training, "fine-tune")
    created = create(client, file=held_out, candidates=[{"type": "base"}], training_file=file)
    assert created["excluded"]["count"] == 1


def test_too_many_answers_are_refused(client: OpenAI) -> None:
    held_out = upload(client, lines(range(1000)))
    candidates = [{"type": "base"} for _ in range(51)]
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, file=held_out, candidates=candidates)
    assert (refused.value.code, refused.value.param) == ("too_many_answers", "candidates")


def test_cancelling_ends_the_requests_in_flight(
    client: OpenAI, http: httpx2.Client, engine: StubEngine
) -> None:
    engine.hold_after = 3
    engine.go_on.clear()
    held_out = upload(client, lines(range(50)))
    created = create(client, file=held_out, candidates=[{"type": "base"}], concurrency=4)
    wait_until(lambda: len(engine.bodies) == 7, "four requests wait")
    cancelled = http.post(f"/v1/comparisons/{created['id']}/cancel").json()
    assert (cancelled["status"], cancelled["progress"]["done"]) == ("cancelled", 3)
    assert cancelled["finished_at"] is not None
    wait_until(lambda: engine.in_flight == 0, "the engine's work ends")
    assert http.post(f"/v1/comparisons/{created['id']}/cancel").status_code == 200
    assert len(engine.bodies) == 7
    answers = [len(item["answers"]) for item in get(client, created["id"], "/items")["data"]]
    assert sum(answers) == 3


def test_what_has_ended_cannot_be_cancelled(client: OpenAI, engine: StubEngine, http: httpx2.Client) -> None:
    created = create(client, file=upload(client, lines(range(2))), candidates=[{"type": "base"}])
    ended(client, created["id"])
    refused = http.post(f"/v1/comparisons/{created['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "comparison_succeeded")
    assert refused.headers["x-should-retry"] == "false"
