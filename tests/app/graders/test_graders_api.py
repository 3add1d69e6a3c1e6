"""OpenAI's graders through its official client: what they give, and what they say when they give nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from starlette.responses import JSONResponse

from app.core.database import Database
from tests.app.comparisons.stub_engine import StubEngine
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database

CHECK = {
    "type": "string_check",
    "name": "label",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.label }}",
    "operation": "eq",
}
SIMILARITY = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.label}}",
    "evaluation_metric": "fuzzy_match",
}
SCORE = {
    "type": "score_model",
    "name": "taste",
    "model": BASE_MODEL,
    "input": [
        {"role": "system", "content": "Score the dish."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "{{ item.label }}: {{ sample.output_text }}"}],
        },
    ],
}
LABEL = {
    "type": "label_model",
    "name": "tone",
    "model": BASE_MODEL,
    "input": [{"role": "user", "content": {"type": "input_text", "text": "{{ sample.output_text }}"}}],
    "labels": ["warm", "cold", "rude"],
    "passing_labels": ["warm"],
}


def multi(graders: Any, formula: str = "a") -> dict[str, Any]:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


@pytest.fixture
def judge(database: Database) -> Iterator[StubEngine]:
    """An engine that answers with `judge.reply`."""
    stub = StubEngine(lambda body: stub.reply)
    stub.reply = json.dumps({"result": 0.75})  # type: ignore[attr-defined]
    with TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(stub, socket):
            register_engine(database, f"unix:{socket}")
            yield stub


def run(client: OpenAI, grader: Any, sample: str, **item: Any) -> Any:
    return client.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item=item)


def errors(result: Any) -> set[str]:
    """The names of the errors that are true."""
    return {name for name, value in result.metadata.errors.to_dict().items() if value is True}


def test_string_check(client: OpenAI) -> None:
    for operation, sample, label, reward in [
        ("eq", "Leek", "Leek", 1),
        ("eq", "leek", "Leek", 0),
        ("ne", "leek", "Leek", 1),
        ("like", "a Leek soup", "Leek", 1),
        ("like", "a leek soup", "Leek", 0),
        ("ilike", "a leek soup", "LEEK", 1),
        ("like", "a.c", "a_c", 0),
    ]:
        result = run(client, CHECK | {"operation": operation}, sample, label=label)
        assert (result.reward, errors(result)) == (reward, set()), operation
        assert (result.metadata.name, result.metadata.type) == ("label", "string_check")
        assert (result.metadata.token_usage, result.metadata.sampled_model_name) == (None, None)
        assert result.metadata.execution_time > 0
        assert (result.sub_rewards, result.api_model_grader_token_usage_per_model) == ({}, {})


def test_text_similarity(client: OpenAI) -> None:
    for metric, reward in {
        "fuzzy_match": 32 / 36,
        "bleu": (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4),
        "gleu": 10 / 14,
        "rouge_1": 4 / 5,
        "rouge_2": 3 / 4,
        "rouge_3": 2 / 3,
        "rouge_4": 1 / 2,
        "rouge_5": 0,
        "rouge_l": 4 / 5,
    }.items():
        grader = SIMILARITY | {"evaluation_metric": metric}
        result = run(client, grader, "the cat sat on mats", label="the cat sat on it")
        assert (result.reward, errors(result)) == (pytest.approx(reward), set()), metric


def test_templates_reach_into_the_item_and_the_sample(client: OpenAI) -> None:
    check = CHECK | {
        "input": "{{ sample.output_json.dishes[1].name }} for {{sample.output_json['how many']}}",
        "reference": "{{ item.menu[0].dish }} for {{ item.guests }}",
    }
    sample = json.dumps({"dishes": [{}, {"name": "{{ item.guests }}"}], "how many": 4})
    result = run(client, check, sample, menu=[{"dish": "{{ item.guests }}"}], guests=4)
    assert (result.reward, errors(result)) == (1, set()), "what is filled in is not read again"
    whole = CHECK | {
        "input": "{{ sample.output_tools[0].function.name }}",
        "reference": "{{ item.call.name }}",
    }
    weigh = {"name": "weigh", "arguments": {"of": "flour"}}
    openai = {"type": "function", "function": {"name": "weigh", "arguments": '{"of":"flour"}'}}
    every = CHECK | {"input": "{{ sample.output_tools }}", "reference": "{{ item.calls }}"}
    for calls in ([weigh], [openai], ["no call", openai | {"id": "call_1"}]):
        assert run(client, whole, json.dumps(calls), call={"name": "weigh"}).reward == 1, calls
        assert run(client, every, json.dumps(calls), calls=[openai]).reward == 1, calls
    for no_calls in ([], {}, [{"type": "function", "function": "weigh"}], [[openai]]):
        assert run(client, every, json.dumps(no_calls), calls=[]).reward == 1, no_calls


def test_templates_that_cannot_be_filled_in(client: OpenAI) -> None:
    for reference, sample, error in [
        ("{{ item.nothing }}", "x", "invalid_variable_error"),
        ("{{ item.label[0] }}", "x", "invalid_variable_error"),
        ("{{ sample.output_tools[0] }}", "x", "invalid_variable_error"),
        ("{{ sample.output_json.a }}", "x", "sample_parse_error"),
        ("{{ sample.output_json.a }}", '{"b": 1}', "invalid_variable_error"),
        ("{{ item.long }}" * 2, "x", "other_error"),
    ]:
        result = run(client, CHECK | {"reference": reference}, sample, label="x", long="x" * 60_000)
        assert (result.reward, errors(result)) == (0, {error}), reference
    turns = [{"role": "user", "content": "{{ item.long }}"}] * 5
    result = run(client, SCORE | {"input": turns}, "x", long="x" * 90_000)
    assert (result.reward, errors(result)) == (0, {"other_error"}), "no judge is asked"


def test_a_score_model(client: OpenAI, judge: StubEngine) -> None:
    judge.reply = json.dumps({"result": 7.5})
    sampling = {"seed": 42, "top_p": 0.5, "temperature": 1, "max_completions_tokens": 64}
    grader = SCORE | {"range": [0, 10], "sampling_params": sampling}
    result = run(client, grader, "Too salty.", label="Stew")
    assert (result.reward, errors(result)) == (7.5, set())
    assert (result.metadata.token_usage, result.metadata.sampled_model_name) == (13, BASE_MODEL)
    assert result.api_model_grader_token_usage_per_model == {
        BASE_MODEL: {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 13, "cached_tokens": 0}
    }
    [asked] = judge.bodies
    assert asked["messages"] == [
        {"role": "system", "content": "Score the dish."},
        {"role": "user", "content": "Stew: Too salty."},
    ]
    assert (asked["seed"], asked["top_p"], asked["temperature"], asked["max_tokens"]) == (42, 0.5, 1, 64)
    result_schema = asked["response_format"]["json_schema"]["schema"]["properties"]["result"]
    assert result_schema == {"type": "number", "minimum": 0, "maximum": 10}


def test_replies_that_are_no_score(client: OpenAI, judge: StubEngine) -> None:
    for reply in (
        "seven",
        "{}",
        '{"result": "7"}',
        '{"result": 1.5}',
        '{"result": true}',
        "[1]",
        '{"result": 0.',
    ):
        judge.reply = reply
        result = run(client, SCORE, "Too salty.", label="Stew")
        assert (result.reward, errors(result)) == (0, {"model_grader_parse_error"}), reply
        assert result.metadata.token_usage == 13


def test_a_label_model(client: OpenAI, judge: StubEngine) -> None:
    for label, reward in {"warm": 1, "cold": 0}.items():
        judge.reply = json.dumps({"result": label})
        result = run(client, LABEL, "Come in!")
        assert (result.reward, errors(result)) == (reward, set())
    schema = judge.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["result"]
    assert schema == {"type": "string", "enum": ["warm", "cold", "rude"]}


def test_judges_that_refuse_or_fail(client: OpenAI, judge: StubEngine) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": BASE_MODEL}
    judge.reply = JSONResponse(answer | {"choices": [choice], "usage": usage})
    assert errors(run(client, LABEL, "Come in!")) == {"model_grader_refusal_error"}
    judge.reply = JSONResponse({"error": {"message": "/secret/path.py line 3"}}, 500)
    result = run(client, LABEL, "Come in!")
    assert errors(result) == {"model_grader_server_error"}
    assert (
        result.metadata.errors.api_model_grader_server_error_details == "The engine failed on this request."
    )


def test_multi(client: OpenAI) -> None:
    cases: list[tuple[Any, str, dict[str, float]]] = [
        ({"exact": CHECK, "close": SIMILARITY}, "(exact + 3 * close) / 4", {"exact": 0, "close": 0.8}),
        ([CHECK, SIMILARITY], "0.25 * string_check_score + 0.75 * close", {"label": 0, "close": 0.8}),
        (SIMILARITY, "max(close, 0.1) ^ 1 - abs(-0.2)", {"close": 0.8}),
    ]
    for graders, formula, parts in cases:
        result = run(client, multi(graders, formula), "leeks", label="Leeks")
        assert (result.reward, errors(result)) == (pytest.approx(0.6), set()), formula
        assert result.sub_rewards == result.metadata.scores == pytest.approx(parts)


def test_multi_asks_every_judge(client: OpenAI, judge: StubEngine) -> None:
    judge.respond = lambda body: json.dumps(
        {"result": "warm" if "enum" in json.dumps(body["response_format"]) else 0.5}
    )
    graders = {"tone": LABEL, "check": CHECK, "taste": SCORE}
    grader = {"type": "multi", "name": "all", "graders": graders, "calculate_output": "tone * taste + check"}
    result = run(client, grader, "Stew", label="Stew")
    assert (result.reward, errors(result)) == (1.5, set())
    assert result.sub_rewards == {"tone": 1, "check": 1, "taste": 0.5}
    assert result.metadata.token_usage == 26
    judge.reply = "nonsense"
    judge.respond = lambda body: judge.reply
    result = run(client, grader, "Stew", label="Stew")
    assert (result.reward, errors(result)) == (0, {"model_grader_parse_error"})
    assert result.sub_rewards == {"check": 1}


def test_formulas_without_a_value(client: OpenAI) -> None:
    for formula in ("1 / check", "log(check)", "9 ^ 9 ^ 9", "exp(1000) + check"):
        result = run(client, multi({"check": CHECK}, formula), "Stew", label="Soup")
        assert (result.reward, errors(result)) == (0, {"formula_parse_error"}), formula


def test_what_is_valid_comes_back_as_it_was_sent(http: httpx2.Client) -> None:
    combined = [multi({"a": CHECK}), multi(CHECK, "label"), multi([CHECK], "label")]
    combined += [multi([CHECK | {"name": "string_check_score"}], "string_check_score")]
    for grader in (CHECK, SIMILARITY, SCORE, LABEL, *combined):
        response = http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader})
        assert (response.status_code, response.json()) == (200, {"grader": grader})


REFUSED: list[tuple[Any, str, str]] = [
    ({"type": "python", "name": "p", "source": "1"}, "grader", "python"),
    (multi({"a": {"type": "python", "name": "p", "source": "1"}}), "grader.graders.a", "python"),
    (multi({"a": multi({"a": CHECK})}), "grader.graders.a.type", "'multi'"),
    ({"type": "vibes"}, "grader.type", "'vibes' is none of 'string_check'"),
    ({"name": "a"}, "grader.type", "Missing"),
    ("string_check", "grader", "object"),
    (CHECK | {"operation": "regex"}, "grader.operation", "'ilike'"),
    (CHECK | {"input": "{{ 7 * 7 }}"}, "grader.input", "{{ 7 * 7 }} is no place"),
    (CHECK | {"input": "{{ item.__class__() }}"}, "grader.input", "is no place"),
    (CHECK | {"input": "{% for x in y %}{{ env.KEY }}"}, "grader.input", "{{ env.KEY }} is no place"),
    (CHECK | {"reference": "x" * 40_000}, "grader.reference", "32000"),
    (
        SCORE | {"input": [{"role": "user", "content": ["x" * 32_000] * 4}]},
        "grader",
        "more than 100,000 characters together",
    ),
    (CHECK | {"name": "\ud800"}, "grader.name", "unicode"),
    (SIMILARITY | {"evaluation_metric": "meteor"}, "grader.evaluation_metric", "WordNet"),
    (SIMILARITY | {"evaluation_metric": "cosine"}, "grader.evaluation_metric", "embedding"),
    (SCORE | {"range": [1, 1]}, "grader.range", "lower one first"),
    (SCORE | {"sampling_params": {"top_k": 1}}, "grader.sampling_params.top_k", "Unknown"),
    (SCORE | {"sampling_params": {"temperature": 9}}, "grader.sampling_params.temperature", "2"),
    (
        SCORE | {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "grader.input[0].content[0].type",
        "input_image cannot be read",
    ),
    (LABEL | {"labels": [f"{'🥕' * 197}{n}" for n in range(100)]}, "grader.labels", "32,768 bytes"),
    (LABEL | {"passing_labels": ["sour"]}, "grader.passing_labels", "'sour'"),
    (multi({"a": CHECK}, "a + b"), "grader.calculate_output", "'b'"),
    (multi({"a": CHECK}, "0.5 * a)"), "grader.calculate_output", "cannot be read"),
    (multi({"a": CHECK}, "a.__class__"), "grader.calculate_output", "only"),
    (multi({"a": CHECK}, "(lambda: 1)()"), "grader.calculate_output", "calls"),
    (multi({"a": CHECK}, "__import__('os')"), "grader.calculate_output", "calls"),
    (multi({"a": CHECK}, "(" * 250 + "a" + ")" * 250), "grader.calculate_output", "500"),
    (multi({"not a name": CHECK}), "grader.graders.not a name", "pattern"),
    (multi([CHECK, CHECK], "label"), "grader.graders", "'label' names two graders"),
    (
        multi([CHECK, SIMILARITY | {"name": "string_check_score"}], "label"),
        "grader.graders",
        "'string_check_score' names two graders",
    ),
    (multi({}), "grader.graders", "at least 1"),
    (multi({f"g{n}": CHECK for n in range(21)}), "grader.graders", "20"),
]


def test_what_is_refused(http: httpx2.Client) -> None:
    for grader, param, words in REFUSED:
        for route, sample in {"validate": {}, "run": {"model_sample": "x"}}.items():
            response = http.post(
                f"/v1/fine_tuning/alpha/graders/{route}",
                content=json.dumps({"grader": grader} | sample),
                headers={"content-type": "application/json"},
            )
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] == param, error
            assert words in error["message"], error


def test_templates_are_read_in_linear_time(http: httpx2.Client) -> None:
    for template in ("{" * 32_000, "{{ " * 10_000, "{{}" * 10_000):
        grader = CHECK | {"input": template, "reference": template}
        began = time.process_time()  # which goes on only while this process, and so the service, works
        response = http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader}, timeout=120)
        assert time.process_time() - began < 5
        assert (response.status_code, response.json()) == (200, {"grader": grader})


def test_models_and_samples_that_are_refused(http: httpx2.Client, judge: StubEngine) -> None:
    def error(status: int, **body: Any) -> dict[str, Any]:
        response = http.post("/v1/fine_tuning/alpha/graders/run", json=body)
        assert response.status_code == status, response.text
        return response.json()["error"]

    unknown = error(404, grader=SCORE | {"model": "gpt-5"}, item={"label": ""}, model_sample="x")
    assert (unknown["code"], unknown["param"]) == ("model_not_found", "grader.model")
    nested = error(404, grader=multi({"a": LABEL | {"model": "gpt-5"}}), model_sample="x")
    assert (nested["code"], nested["param"]) == ("model_not_found", "grader.graders.a.model")
    too_long = {"message": "This model's maximum context length is 2048 tokens.", "code": 400}
    judge.reply = JSONResponse({"error": too_long}, 400)
    long = error(400, grader=LABEL, model_sample="x")
    assert (long["code"], long["param"]) == ("context_length_exceeded", "grader.input")
    assert error(400, grader=CHECK, model_sample="x" * 40_000)["param"] == "model_sample"
    assert error(400, grader=CHECK, model_sample="x", item={"a": "x" * 300_000})["param"] == "item"
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    assert error(400, grader=CHECK, model_sample="x", item={"a": deep})["param"] == "item"
    assert error(400, grader=CHECK, item={})["param"] == "model_sample"


def test_without_an_engine_the_client_may_try_again(http: httpx2.Client) -> None:
    body = {"grader": LABEL, "model_sample": "x"}
    response = http.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(response.headers["retry-after"]) > 0
