"""The gate's rules, each held against figures that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.comparisons.results import CandidateResult, ComparisonResults, Interval, PairResult
from app.core.errors import InvalidRequestError
from app.models.promotion.gate import evaluate, find_candidate
from app.models.promotion.schemas import Beats, Opponent, RuleResult, Rules
from tests.support.comparison_results import candidate, pair, regression, results

TUNED = candidate("tuned", model="ft:new", score=0.9, median=1.2)
BASE = candidate("base", "base", score=0.2, median=1.0)
SYSTEM = candidate("system", "prompt", score=0.5)
SHOTS = candidate("8 examples", "few_shot", score=0.6)
OLD = candidate("old", model="ft:old", score=0.85)
ALL = [TUNED, BASE, SYSTEM, SHOTS, OLD]
PAIRS = [
    pair("tuned", "base", 0.7),
    pair("system", "tuned", -0.4),
    pair("tuned", "8 examples", 0.3),
    pair("old", "tuned", -0.05),
    pair("base", "system", -0.3),
]
FOUND = results(ALL, PAIRS, [regression("tuned", 0.02), regression("old", 0.5)])


def one(rules: Rules, found: ComparisonResults = FOUND, current: tuple[str, ...] = ("ft:old",)) -> RuleResult:
    [result] = evaluate(rules, found, find_candidate(found, "ft:new"), current)
    return result


@pytest.mark.parametrize(("required", "passes"), [(0.9, True), (0.9001, False), (0.0, True), (1.0, False)])
def test_min_score(required: float, passes: bool) -> None:
    result = one(Rules(min_score=required))
    assert (result.rule, result.passed, result.required, result.actual) == (
        "min_score",
        passes,
        required,
        0.9,
    )
    assert result.interval == Interval(low=0.8, high=1.0)
    assert "90.0 %" in result.sentence


@pytest.mark.parametrize(
    ("opponent", "low", "against"),
    [("base", 0.6, "base"), ("prompted", 0.2, "8 examples"), ("current", -0.05, "old")],
)
def test_beats_takes_the_interval_s_lower_end_and_the_hardest_opponent(
    opponent: Opponent, low: float, against: str
) -> None:
    result = one(Rules(beats=[opponent]))
    assert result.rule == f"beats:{opponent}"
    assert result.actual == pytest.approx(low)
    assert result.interval is not None and result.interval.low == result.actual
    assert (result.passed, result.required) == (low > 0, 0.0)
    assert f"against {against} " in result.sentence
    assert ("not better: the interval's lower end is not above 0." in result.sentence) == (low <= 0)


@pytest.mark.parametrize(("delta", "passes"), [(0.1, True), (0.19, True), (0.2, False), (0.3, False)])
def test_delta_is_below_the_lower_end(delta: float, passes: bool) -> None:
    exact = pair("tuned", "8 examples", 0.3).model_copy(
        update={"interval": pair("a", "b", 0.3).interval.model_copy(update={"low": 0.2})}
    )
    found = results([TUNED, SHOTS], [exact])
    result = one(Rules(beats=[Beats(candidate="prompted", delta=delta)]), found)
    assert (result.passed, result.required, result.actual) == (passes, delta, 0.2)
    assert f"by more than {100 * delta:.1f} points" in result.sentence


def test_an_interval_is_not_enough() -> None:
    found = results([TUNED, BASE], [pair("base", "tuned", -0.2, p=0.06)])
    result = one(Rules(beats=["base"]), found)
    assert (result.passed, result.actual) == (False, pytest.approx(0.1))
    assert "p = 0.06" in result.sentence
    assert result.sentence.endswith("not better: the test's p is above 0.05.")
    assert one(Rules(beats=["base"]), results([TUNED, BASE], [pair("tuned", "base", 0.2, p=0.05)])).passed


def test_other_pairs_of_the_comparison_change_nothing() -> None:
    """Whatever the table makes of the pair: the base is one opponent, so its p stays as it is."""
    pairs = [
        pair("tuned", "base", 0.2, p=0.04),
        pair("tuned", "old", 0.01, p=0.9),
        pair("old", "base", 0, p=1),
    ]
    assert pairs[0].p_adjusted > 0.05
    rules = Rules(beats=[Beats(candidate="base", delta=0.02)])
    result = one(rules, results([TUNED, BASE, OLD], pairs))
    assert (result.passed, result.p, result.actual) == (True, 0.04, pytest.approx(0.1))
    assert result.sentence.endswith("at 95 % better by more than 2.0 points.")
    assert one(rules, results([TUNED, BASE], pairs[:1])) == result


def test_each_prompted_opponent_counts_in_the_correction() -> None:
    pairs = [pair("tuned", "system", 0.4, p=0.03), pair("8 examples", "tuned", -0.3, p=0.04)]
    result = one(Rules(beats=["prompted"]), results([TUNED, SYSTEM, SHOTS], pairs))
    assert (result.passed, result.p) == (False, pytest.approx(0.06))
    assert one(Rules(beats=["prompted"]), results([TUNED, SHOTS], pairs)).p == 0.04


def test_the_sentence_names_both_conditions_that_fail() -> None:
    found = results([TUNED, BASE], [pair("tuned", "base", 0.05, p=0.3)])
    result = one(Rules(beats=[Beats(candidate="base", delta=0.02)]), found)
    assert result.sentence.endswith(
        "not better by more than 2.0 points: the interval's lower end is not above +2.0 points "
        "and the test's p is above 0.05."
    )


def test_rules_without_a_test_have_no_p() -> None:
    assert one(Rules(min_score=0.5)).p is None
    assert one(Rules(beats=["current"]), current=()).p is None


def test_a_gain_on_general_questions_is_no_loss() -> None:
    found = results([TUNED, BASE], [], [regression("tuned", -0.02)])
    assert "tuned lost nothing on general questions" in one(Rules(max_regression=0), found).sentence


def test_the_one_that_fails_is_shown_though_another_is_closer() -> None:
    """Ahead of one by a hair, behind none; but the wider one is not significant."""
    found = results(
        [TUNED, SYSTEM, SHOTS],
        [pair("tuned", "system", 0.11), pair("tuned", "8 examples", 0.5, p=0.2)],
    )
    result = one(Rules(beats=["prompted"]), found)
    assert not result.passed
    assert "against 8 examples" in result.sentence


def test_nothing_to_beat() -> None:
    result = one(Rules(beats=["current"]), current=())
    assert (result.passed, result.actual) == (True, None)
    assert "nothing to beat" in result.sentence


def test_every_model_of_a_split_is_current() -> None:
    older = candidate("older", model="ft:older")
    found = results([TUNED, OLD, older], [pair("tuned", "old", 0.3), pair("older", "tuned", 0.1)])
    result = one(Rules(beats=["current"]), found, ("ft:old", "ft:older"))
    assert not result.passed
    assert "against older" in result.sentence


@pytest.mark.parametrize(
    ("required", "tuned", "base", "passes", "actual"),
    [
        (1.2, 1.2, 1.0, True, 1.2),
        (1.19, 1.2, 1.0, False, 1.2),
        (0.5, 0.4, 1.0, True, 0.4),
        (9.0, None, 1.0, False, None),
    ],
)
def test_max_latency_ratio(
    required: float, tuned: float | None, base: float, passes: bool, actual: float | None
) -> None:
    found = results(
        [candidate("tuned", model="ft:new", median=tuned), candidate("base", "base", median=base)], []
    )
    result = one(Rules(max_latency_ratio=required), found)
    assert (result.passed, result.required, result.actual) == (passes, required, actual)


@pytest.mark.parametrize(("allowed", "passes"), [(0.02, True), (0.0199, False), (0.0, False)])
def test_max_regression(allowed: float, passes: bool) -> None:
    result = one(Rules(max_regression=allowed))
    assert (result.passed, result.actual) == (passes, 0.02)
    assert result.interval is not None and result.interval.high == pytest.approx(0.05)
    assert "lost 2.0 points on" in result.sentence


def test_rules_come_in_order() -> None:
    rules = Rules(
        max_regression=0.1,
        max_latency_ratio=2,
        beats=["current", Beats(candidate="base", delta=0.1), "prompted"],
        min_score=0.5,
    )
    evaluated = evaluate(rules, FOUND, TUNED, ["ft:old"])
    assert [(each.rule, each.passed) for each in evaluated] == [
        ("min_score", True),
        ("beats:current", False),
        ("beats:base", True),
        ("beats:prompted", True),
        ("max_latency_ratio", True),
        ("max_regression", True),
    ]


@pytest.mark.parametrize(
    ("rules", "candidates", "pairs", "param", "code"),
    [
        (Rules(), ALL, PAIRS, "rules", "missing_required_parameter"),
        (Rules(beats=["base"]), [TUNED], [], "rules.beats[0]", "candidate_not_compared"),
        (Rules(beats=["base", "prompted"]), [TUNED, BASE], PAIRS, "rules.beats[1]", "candidate_not_compared"),
        (Rules(beats=["current"]), [TUNED, BASE], PAIRS, "rules.beats[0]", "candidate_not_compared"),
        (Rules(beats=["base"]), [TUNED, BASE], [], "rules.beats[0]", "candidate_not_compared"),
        (
            Rules(max_latency_ratio=1),
            [TUNED, SYSTEM],
            [],
            "rules.max_latency_ratio",
            "candidate_not_compared",
        ),
        (Rules(max_regression=1), [TUNED, BASE], [], "rules.max_regression", "candidate_not_compared"),
    ],
)
def test_what_a_comparison_cannot_answer_is_no_refusal(
    rules: Rules, candidates: list[CandidateResult], pairs: list[PairResult], param: str, code: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        evaluate(rules, results(candidates, pairs), TUNED, ["ft:old"])
    assert (caught.value.body.param, caught.value.body.code) == (param, code)


def test_a_prompted_model_is_not_the_model() -> None:
    prompted = candidate("prompted tuned", "prompt", model="ft:new")
    with pytest.raises(InvalidRequestError) as caught:
        find_candidate(results([prompted, BASE], []), "ft:new")
    assert caught.value.body.code == "model_not_compared"
    assert find_candidate(results([prompted, BASE], []), BASE.model) is not None


@given(
    difference=st.floats(-1, 1),
    margin=st.floats(0.001, 0.5),
    p=st.floats(0, 1),
    delta=st.floats(0, 0.99),
)
def test_it_does_not_matter_whom_a_pair_names_first(
    difference: float, margin: float, p: float, delta: float
) -> None:
    rules = Rules(beats=[Beats(candidate="base", delta=delta)])
    forth = one(rules, results([TUNED, BASE], [pair("tuned", "base", difference, margin=margin, p=p)]))
    back = one(rules, results([TUNED, BASE], [pair("base", "tuned", -difference, margin=margin, p=p)]))
    assert (forth.passed, forth.actual) == (back.passed, pytest.approx(back.actual))
    assert forth.passed == (difference - margin > delta and p <= 0.05)
