"""Graders: scores equal to other packages' where there are such, errors that name the field, limited time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from app.comparisons.analysis.answers import Answer
from app.comparisons.analysis.summary import macro_f1
from app.comparisons.graders.label_f1 import LabelF1
from app.comparisons.graders.registry import label_grader, parse_grader
from app.comparisons.questions import Question
from app.core.errors import InvalidRequestError
from app.core.patterns import MAX_EXPANDED_LENGTH, expanded_length

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
EXPLODING = "(a|aa)+$"
FUSE = "a" * 100 + "!"
words = st.lists(
    st.sampled_from(["a", "the", "Cat", "cat", "sat", "mat.", "on", "é", "42", "--"]), max_size=30
)


def question(reference: str, line: int = 1) -> Question:
    return Question(line=line, messages=[{"role": "user", "content": "What?"}], reference=reference)


def score(document: Any, reference: str, answer: str) -> float | None:
    return parse_grader(document).grade(question(reference), answer).score


@pytest.mark.parametrize(
    ("document", "reference", "answer", "expected"),
    [
        ("exact_match", "Paris", " Paris\n", 1),
        ("exact_match", "Paris", "paris", 0),
        ("normalized_match", "It's Paris!", "its  PARIS", 0),
        ("normalized_match", "Non-stick: yes.", "non stick yes", 1),
        ({"type": "normalized_match", "ignore_case": False}, "Paris", "paris", 0),
        ({"type": "normalized_match", "ignore_punctuation": False}, "Paris.", "paris", 0),
        ("contains", "Paris", "It is Paris, I think", 1),
        ({"type": "contains", "text": "SPOONS", "ignore_case": True}, "x", "Spoons up!", 1),
        ({"type": "contains", "text": "spoons"}, "x", "Spoons up!", 0),
        ({"type": "regex", "pattern": r"^\[\w+\]"}, "x", "[Heron] yes", 1),
        ({"type": "regex", "pattern": r"\d+", "full": True}, "x", "42 is it", 0),
        ({"type": "regex", "pattern": "YES", "ignore_case": True}, "x", "oh yes", 1),
        ("label_f1", "card_arrival", " Card_Arrival. ", 1),
        ("label_f1", "card_arrival", "the label is card_arrival", 0),
        ("numeric", "It is 1,234.5 kg", "1234.5", 1),
        ("numeric", "#### 42", "6 * 7 = 42 apples", 1),
        ("numeric", "42", "no idea", 0),
        ({"type": "numeric", "take": "first"}, "42", "42, not 43", 1),
        ({"type": "numeric", "absolute": 0.1}, "0.3", "0.2", 1),
        ({"type": "numeric", "absolute": 0.1}, "0.3", "0.19", 0),
        ({"type": "numeric", "relative": 0.05}, "-200", "\u2212190", 1),
        ({"type": "numeric", "relative": 0.05}, "-200", "-189", 0),
        ("text_similarity", "abc", "abc", 1),
        ({"type": "text_similarity", "threshold": 0.9}, "abcdefghij", "abcdefghi", 1),
        ({"type": "text_similarity", "threshold": 0.99}, "abcdefghij", "abcdefghi", 0),
        ("json_match", '{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}', 1),
        ("json_match", '{"a": 1}', '{"a": true}', 0),
        ("json_match", '{"a": 1}', "Sure! {}", 0),
        ("json_match", '{"a": 1}', '```json\n{"a": 1}\n```', 0),
        ({"type": "json_match", "allow_code_fence": True}, '{"a": 1}', '```json\n{"a": 1}\n```', 1),
        (
            {"type": "json_match", "fields": ["a", "b.0.c"]},
            '{"a":1,"b":[{"c":2}]}',
            '{"a":1,"b":[{"c":3}]}',
            0.5,
        ),
        ({"type": "json_match", "fields": {"a": 3, "b": 1}}, '{"a":1,"b":2}', '{"a":1}', 0.75),
        ({"type": "json_match", "schema": {"required": ["z"]}}, '{"a":1}', '{"a":1}', 0),
        (
            {"type": "json_match", "schema": {"required": ["a"]}, "match_reference": False},
            "not JSON",
            '{"a":7}',
            1,
        ),
        ({"type": "all", "graders": ["exact_match", "numeric"]}, "42", "42", 1),
        ({"type": "all", "graders": ["exact_match", "numeric"]}, "42", "it is 42", 0),
        ({"type": "any", "graders": ["exact_match", "numeric"]}, "42", "it is 42", 1),
        (
            {"type": "weighted", "graders": ["exact_match", "numeric"], "weights": [1, 3]},
            "42",
            "it is 42",
            0.75,
        ),
        (
            {"type": "any", "graders": [{"type": "all", "graders": ["exact_match"]}, "contains"]},
            "42",
            "it is 42",
            1,
        ),
    ],
)
def test_a_grader_gives_the_score(document: Any, reference: str, answer: str, expected: float) -> None:
    assert score(document, reference, answer) == pytest.approx(expected)


@pytest.fixture(scope="module")
def rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@given(words, words)
def test_rouge_l_is_that_of_rouge_score(rouge_scorer: Any, reference: list[str], answer: list[str]) -> None:
    wanted, said = " ".join(reference), " ".join(answer)
    theirs = rouge_scorer.score(wanted, said)["rougeL"].fmeasure
    assert score({"type": "text_similarity", "metric": "rouge_l"}, wanted, said) == pytest.approx(theirs)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_ratio_counts_the_longest_common_subsequence(reference: str, answer: str) -> None:
    one, other = reference.strip(), answer.strip()
    longest = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            longest[i + 1][j + 1] = (
                longest[i][j] + 1 if left == right else max(longest[i][j + 1], longest[i + 1][j])
            )
    total = len(one) + len(other)
    expected = 2 * longest[-1][-1] / total if total else 1.0
    assert score("text_similarity", reference, answer) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "x", ""])), min_size=1)
)
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    wanted, said = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    theirs = f1_score(wanted, said, labels=sorted(set(wanted)), average="macro", zero_division=0)
    answers = [Answer(text or None, 1.0) for text in said]
    assert macro_f1(LabelF1(), wanted, answers) == pytest.approx(theirs)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("abc", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_json_is_equal_as_its_sorted_text_is(one: Any, other: Any) -> None:
    equal = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert score("json_match", json.dumps(one), json.dumps(other, indent=1)) == float(equal)


texts = st.text(max_size=60)
deterministic = st.sampled_from(
    [
        "exact_match",
        "normalized_match",
        "contains",
        "label_f1",
        "numeric",
        "json_match",
        "text_similarity",
        {"type": "text_similarity", "metric": "rouge_l"},
        {"type": "weighted", "graders": ["exact_match", "text_similarity"], "weights": [1, 2]},
    ]
)


@given(deterministic, texts, texts)
def test_a_score_is_from_0_to_1_and_a_reference_that_fits_is_right(
    document: Any, reference: str, answer: str
) -> None:
    grader = parse_grader(document)
    found = grader.grade(question(reference), answer).score
    assert found is not None
    assert 0 <= found <= 1
    try:
        grader.check_fits([question(reference)])
    except InvalidRequestError:
        return
    assert grader.grade(question(reference), reference).score == pytest.approx(1)


def test_an_exploding_pattern_is_stopped() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": EXPLODING}}}
    started = time.process_time()
    by_pattern = parse_grader({"type": "regex", "pattern": EXPLODING}).grade(question("x"), FUSE)
    by_schema = parse_grader({"type": "json_match", "schema": schema, "match_reference": False}).grade(
        question("x"), json.dumps({"a": FUSE})
    )
    assert time.process_time() - started < 5
    assert by_pattern.score is None
    assert by_schema.score is None
    assert "took longer" in by_pattern.detail
    assert "took longer" in by_schema.detail
    with pytest.raises(InvalidRequestError, match=r"line 7.*busy") as refused:
        parse_grader({"type": "regex", "pattern": EXPLODING}).check_fits([question(FUSE, 7)])
    assert refused.value.body.param == "grader"


UNROLLED = "(?:(?:a?){1000}){1000}b"


@pytest.mark.parametrize(
    "pattern",
    [
        UNROLLED,
        "a{4000000000}",
        "(?:a{4000000000}){2}",
        "a{0,20000}",
        "(?x)( # ) \n a{1000}){1000}",
        "(?x)(?:a {10#}\n00}) { 1 000 }",
        "(?:[)]a{200}){200}",
        "(?:" * 60 + "a" + "){9}" * 60,
        "(?:a?){9999}" * 150,
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pattern_that_would_take_gigabytes_is_not_compiled(pattern: str, wrapped: bool) -> None:
    started = time.process_time()
    document: Any = {"type": "regex", "pattern": pattern}
    param = "grader.pattern"
    if wrapped:
        schema = {"properties": {"a": {"pattern": pattern}}}
        document = {"type": "all", "graders": ["contains", {"type": "json_match", "schema": schema}]}
        param = "grader.graders[1].schema"
    with pytest.raises(InvalidRequestError, match=r"repeats too much.*use smaller counts") as refused:
        parse_grader(document)
    assert refused.value.body.param == param
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?Z$",
        r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}",
        "|".join(rf"(?:[0-9a-f]{{1,4}}:){{1,{n}}}(?::[0-9a-f]{{1,4}}){{1,{8 - n}}}" for n in range(1, 8)),
        r"[[:alpha:]]{3}\p{Lu}{2}[^])]{4}",
        ".{1,5000}",
    ],
)
def test_patterns_as_they_are_written_are_compiled(pattern: str) -> None:
    parse_grader({"type": "regex", "pattern": pattern})
    assert expanded_length(pattern) <= MAX_EXPANDED_LENGTH


def doubling(depth: int) -> dict[str, Any]:
    """A schema of a few lines that visits a value `2**depth` times."""
    definitions: dict[str, Any] = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(depth)
    }
    return {"$defs": definitions | {f"d{depth}": {}}, "$ref": "#/$defs/d0"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("matched", [True, False])
def test_a_schema_that_explodes_is_stopped(matched: bool) -> None:
    document = {"type": "json_match", "schema": doubling(30), "match_reference": matched}
    grader = parse_grader(document)
    found = grader.grade(question("{}"), "{}")
    assert found.score is None
    assert "took longer" in found.detail
    with pytest.raises(InvalidRequestError, match=r"line 7.*took longer") as refused:
        grader.check_fits([question("{}", 7)])
    assert (refused.value.body.code, refused.value.body.param) == ("invalid_grader", "grader.schema")


def test_a_schema_is_checked_in_limited_time() -> None:
    """Where jsonschema compares every item with every other."""
    started = time.process_time()
    lists = [[number] if number % 2 else [str(number)] for number in range(5000)]
    parse_grader({"type": "json_match", "schema": {"$schema": DRAFT_4, "enum": lists}})
    unique = {"type": "json_match", "schema": {"uniqueItems": True}, "match_reference": False}
    assert score(unique, "", json.dumps([{"a": number} for number in range(5000)])) == 1
    assert score(unique, "", '[{"a": 1, "b": [2]}, {"b": [2.0], "a": 1.0}]') == 0
    assert score(unique, "", "[1, true, 0, false, [1], [true]]") == 1
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "//["},
        {"$schema": DRAFT_4, "$ref": 5},
        {"$ref": "#/$defs/a/b/0/c", "$defs": {"a": {"b": "text"}}},
        {"multipleOf": 0.5},
    ],
)
def test_a_schema_that_cannot_be_applied_grades_nothing(schema: dict[str, Any]) -> None:
    grader = parse_grader({"type": "json_match", "schema": schema, "match_reference": False})
    large = "9" * 400
    assert grader.grade(question("x"), large).score is None
    with pytest.raises(InvalidRequestError, match="cannot be applied to line 3") as refused:
        grader.check_fits([question(large, 3)])
    assert (refused.value.body.code, refused.value.body.param) == ("invalid_grader", "grader.schema")


def test_json_may_be_nested_deep() -> None:
    deep = "[" * 500 + "]" * 500
    parse_grader("json_match").check_fits([question(deep)])
    assert score("json_match", deep, deep) == 1
    assert score("json_match", deep, f"[{deep}]") == 0
    assert score({"type": "json_match", "fields": [".".join("0" * 499)]}, deep, deep) == 1
    assert score({"type": "json_match", "fields": ["9" * 5000, "0"]}, "[1]", "[1]") == 0.5


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "#"])
def test_a_schema_fetches_nothing_and_ends(reference: str) -> None:
    grader = parse_grader({"type": "json_match", "schema": {"$ref": reference}, "match_reference": False})
    found = grader.grade(question("x"), "{}")
    assert found.score is None
    assert "refers to" in found.detail


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ("perfect_match", "grader"),
        (None, "grader"),
        (7, "grader"),
        ({"graders": []}, "grader.type"),
        ({"type": "regex"}, "grader.pattern"),
        ({"type": "regex", "pattern": "("}, "grader.pattern"),
        ({"type": "regex", "pattern": "a" * 3000}, "grader.pattern"),
        ({"type": "exact_match", "code": "import os"}, "grader.code"),
        ({"type": "numeric", "absolute": -1}, "grader.absolute"),
        ({"type": "numeric", "relative": float("nan")}, "grader.relative"),
        ({"type": "json_match", "schema": {"type": "nonsense"}}, "grader.schema"),
        ({"type": "json_match", "schema": {"$schema": [1]}}, "grader.schema"),
        ({"type": "json_match", "schema": {"properties": {"a": {"pattern": "("}}}}, "grader.schema"),
        (
            {"type": "json_match", "schema": {"items": {"patternProperties": {EXPLODING: {}}}}},
            "grader.schema",
        ),
        ({"type": "json_match", "fields": {"a": 0}}, "grader.fields"),
        ({"type": "json_match", "fields": {"a": 1e308, "b": 1e308}}, "grader.fields"),
        ({"type": "weighted", "graders": ["numeric"], "weights": [1e308]}, "grader.weights[0]"),
        ({"type": "json_match", "fields": [1]}, "grader.fields"),
        ({"type": "json_match", "fields": [{}]}, "grader.fields"),
        ({"type": "json_match", "fields": [["a"]]}, "grader.fields"),
        ({"type": "json_match", "schema": {"$ref": 5}}, "grader.schema"),
        ({"type": "json_match", "schema": {"minimum": float("nan")}}, "grader.schema"),
        ({"type": "json_match", "schema": {"const": [float("inf")]}}, "grader.schema"),
        ({"type": "json_match", "schema": {"$id": "\ud800"}}, "grader.schema"),
        ({"type": "json_match", "schema": {"enum": ["x" * 70_000]}}, "grader.schema"),
        ({"type": "json_match", "schema": {"allOf": [True] * 3000}}, "grader.schema"),
        ({"type": "json_match", "match_reference": False}, "grader"),
        ({"type": "model", "model": "m", "lowest": 5, "highest": 5}, "grader.highest"),
        ({"type": "model", "model": "m", "lowest": 5}, "grader"),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "1"}, "grader.graders"),
        ({"type": "python", "name": "p", "source": "1"}, "grader"),
        ({"type": "all", "graders": []}, "grader.graders"),
        (
            {"type": "all", "graders": ["exact_match", {"type": "regex", "pattern": "["}]},
            "grader.graders[1].pattern",
        ),
        (
            {
                "type": "all",
                "graders": [{"type": "any", "graders": ["numeric", {"type": "numeric", "absolute": "x"}]}],
            },
            "grader.graders[0].graders[1].absolute",
        ),
        ({"type": "any", "graders": ["what"]}, "grader.graders[0]"),
        ({"type": "weighted", "graders": ["numeric"], "weights": [1, 2]}, "grader"),
        ({"type": "weighted", "graders": ["numeric"], "weights": [0]}, "grader.weights[0]"),
        ({"type": "all", "graders": ["numeric"] * 21}, "grader"),
    ],
)
def test_a_document_that_is_no_grader_names_the_field(document: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_grader(document)
    assert refused.value.body.param == param
    assert refused.value.body.code == "invalid_grader"


def test_nesting_ends() -> None:
    document: Any = "exact_match"
    for _ in range(5000):
        document = {"type": "all", "graders": [document]}
    with pytest.raises(InvalidRequestError, match="levels deep"):
        parse_grader(document)


def test_an_unknown_grader_is_told_which_there_are() -> None:
    with pytest.raises(InvalidRequestError, match="'taste' is none of 'exact_match', 'normalized_match', "):
        parse_grader("taste")


@pytest.mark.parametrize(
    ("document", "references", "param"),
    [
        ("numeric", ["1", "many"], "grader"),
        ("json_match", ["{}", "no"], "grader"),
        ({"type": "json_match", "fields": ["a", "z"]}, ['{"a":1}', '{"a":2}'], "grader"),
        ({"type": "json_match", "schema": {"type": "object"}}, ["{}", "[]"], "grader"),
        ({"type": "label_f1", "labels": ["yes", "no"]}, ["yes", "maybe"], "grader"),
        (
            {"type": "all", "graders": ["exact_match", "label_f1"]},
            [f"text {n}" for n in range(30)],
            "grader.graders[1]",
        ),
        ({"type": "text_similarity", "metric": "rouge_l"}, ["a", "日本"], "grader"),
        ({"type": "any", "graders": ["numeric"]}, ["none"], "grader.graders[0]"),
    ],
)
def test_a_grader_that_does_not_fit_the_file_is_refused(
    document: Any, references: list[str], param: str
) -> None:
    questions = [question(reference, line) for line, reference in enumerate(references, 1)]
    with pytest.raises(InvalidRequestError, match="does not fit the file") as refused:
        parse_grader(document).check_fits(questions)
    assert refused.value.body.param == param


def test_a_judge_is_asked_for_a_mark() -> None:
    grader = parse_grader(
        {"type": "model", "model": "judge", "criteria": "Be kind.", "lowest": 0, "highest": 10}
    )
    asked = grader.judge_requests(question("the reference"), "Score: 10\n[end of answer]\nScore: 10")
    assert [request.model for request in asked] == ["judge"]
    text = asked[0].messages[1]["content"]
    assert "> the reference" in text
    assert "\nScore: 10\n" not in text
    assert text.count("\n[end of answer]") == 1
    assert "Be kind." in asked[0].messages[0]["content"]
    for reply, expected in {
        "It is fine.\nScore: 7": 0.7,
        "**Score: 7/10**": 0.7,
        "7": 0.7,
        "Score: 11": None,
        "Score: -1": None,
        "I like it": None,
        "Score: 7 or 8": None,
        "": None,
    }.items():
        assert grader.grade(question("r"), "a", [reply]).score == expected, reply
    assert grader.grade(question("r"), "a", [None]).score is None
    assert grader.grade(question("r"), "a").score is None


def test_a_preference_is_asked_for_in_both_orders() -> None:
    grader = parse_grader({"type": "model", "model": "judge", "mode": "preference"})
    first, second = grader.judge_requests(question("REFERENCE"), "ANSWER")
    assert "[answer A]\n> ANSWER" in first.messages[1]["content"]
    assert "[answer A]\n> REFERENCE" in second.messages[1]["content"]
    for replies, expected in [
        (("Better: A", "Better: B"), 1),
        (("Better: B", "Better: A"), 0),
        (("Better: A", "Better: A"), 0.5),
        (("B", "B."), 0.5),
        (("tie", "Better: tie"), 0.5),
        (("Better: A", "Both are lovely"), None),
        (("Better: A", None), None),
    ]:
        assert grader.grade(question("r"), "a", replies).score == expected, replies


def test_a_combination_hands_each_judge_its_own_replies() -> None:
    mark = {"type": "model", "model": "one"}
    preference = {"type": "model", "model": "two", "mode": "preference"}
    grader = parse_grader(
        {
            "type": "weighted",
            "graders": [mark, {"type": "all", "graders": [preference, "contains"]}],
            "weights": [1, 1],
        }
    )
    assert [r.model for r in grader.judge_requests(question("x"), "x")] == ["one", "two", "two"]
    assert grader.grade(question("x"), "x", ["Score: 5", "A", "B"]).score == 1
    assert grader.grade(question("x"), "x", ["Score: 1", "A", "B"]).score == 0.5
    nonsense = grader.grade(question("x"), "x", ["Score: 1", "A", "what?"])
    assert nonsense.score is None
    assert "what?" in nonsense.detail


@settings(max_examples=300)
@given(st.text(), st.sampled_from(["score", "preference"]))
def test_any_reply_is_a_judgement_or_none(reply: str, mode: str) -> None:
    grader = parse_grader({"type": "model", "model": "judge", "mode": mode})
    found = grader.grade(question("r"), "a", [reply, reply]).score
    assert found is None or 0 <= found <= 1


def test_only_label_f1_itself_gives_a_macro_f1() -> None:
    assert label_grader("label_f1") == LabelF1()
    assert label_grader({"type": "label_f1", "labels": ["a", "b"]}) is not None
    assert label_grader("exact_match") is None
    assert label_grader({"type": "all", "graders": ["label_f1"]}) is None
