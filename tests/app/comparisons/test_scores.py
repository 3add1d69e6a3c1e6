"""Statistics: equal to scipy's where it has them, and what must hold whatever the scores are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, permutation_test
from scipy.stats import t as student

from app.comparisons.analysis.answers import (
    Answer,
    CandidateAnswers,
    ComparisonAnswers,
    GeneralAnswers,
)
from app.comparisons.analysis.holm import holm
from app.comparisons.analysis.statistics import Scores, bonett_price, exact_sign_flips, mcnemar, wilson
from app.comparisons.analysis.summary import compute_results
from app.comparisons.plan import Candidate
from app.comparisons.results import CheckpointCurve, ComparisonResults

binary_rows = st.integers(1, 60).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n), min_size=2, max_size=4)
)
rows = st.integers(2, 30).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=n, max_size=n), min_size=2, max_size=4
    )
)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    theirs = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(theirs, rel=1e-9)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    successes = min(successes, trials)
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    ours = wilson(successes / trials, trials)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=9))
def test_sign_flips_are_scipys_permutation_test(values: list[int]) -> None:
    difference = np.array(values, dtype=np.float64)  # whose sums are exact: scipy misses ties of rounded ones
    if not difference.any():
        return
    theirs = permutation_test(
        (difference,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True
    )
    # Scipy doubles the smaller tail, which counts a mean of 0 twice.
    assert exact_sign_flips(difference) == pytest.approx(min(1.0, theirs.pvalue))


def test_drawn_sign_flips_are_close_to_scipys_and_repeatable() -> None:
    generator = np.random.default_rng(5)
    pair = generator.random((2, 60))
    pair[0] = np.clip(pair[0] + 0.09, 0, 1)
    theirs = permutation_test(
        (pair[0] - pair[1],),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=50_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert Scores(pair).p_value(0, 1) == pytest.approx(theirs, abs=0.015)
    assert Scores(pair).p_value(0, 1) == Scores(pair).p_value(1, 0) == Scores(pair, 0).p_value(0, 1)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    """The smallest level at which the step-down procedure rejects each."""
    adjusted = holm(p_values)
    for place, level in enumerate(adjusted):
        assert level >= p_values[place]
        below = sorted(p_values)
        steps = [min(1.0, (len(below) - rank) * p) for rank, p in enumerate(below) if p <= p_values[place]]
        assert level == pytest.approx(max(steps))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.randoms())
def test_holm_is_monotone_and_blind_to_order(p_values: list[float], random: Any) -> None:
    adjusted = dict(zip(p_values, holm(p_values), strict=True))
    ordered = [adjusted[p] for p in sorted(adjusted)]
    assert ordered == sorted(ordered)
    shuffled = list(p_values)
    random.shuffle(shuffled)
    assert [adjusted[p] for p in shuffled] == holm(shuffled)


@given(st.one_of(binary_rows, rows))
def test_a_pair_seen_from_the_other_side_is_its_mirror(scores: list[list[float]]) -> None:
    found = Scores(scores)
    assert found.difference(0, 1) == -found.difference(1, 0)
    assert found.counts(0, 1) == found.counts(1, 0)[::-1]
    assert found.p_value(0, 1) == found.p_value(1, 0)
    one, other = found.difference_interval(0, 1), found.difference_interval(1, 0)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-3)
    assert found.p_value(0, 0) == 1


@given(binary_rows, st.randoms())
def test_the_order_of_questions_and_candidates_does_not_count(scores: list[list[float]], random: Any) -> None:
    columns = list(range(len(scores[0])))
    random.shuffle(columns)
    found, moved = Scores(scores), Scores([[row[column] for column in columns] for row in reversed(scores)])
    last = len(scores) - 1
    for row in range(len(scores)):
        assert found.interval(row) == moved.interval(last - row)
    assert found.p_value(0, last) == moved.p_value(last, 0)
    assert found.difference_interval(0, last) == moved.difference_interval(last, 0)
    assert found.questions_needed(0, last) == moved.questions_needed(last, 0)


@given(st.one_of(binary_rows, rows), st.floats(0.5, 0.98))
def test_an_interval_holds_its_mean_and_grows_with_its_level(scores: list[list[float]], level: float) -> None:
    found = Scores(scores)
    for row, mean in enumerate(found.means):
        narrow, wide = found.interval(row, level), found.interval(row, 0.99)
        assert 0 <= wide.low <= narrow.low + 1e-9 <= mean + 2e-9
        assert mean <= narrow.high + 1e-9 <= wide.high + 2e-9
        assert wide.high <= 1 + 1e-9
    between = found.difference_interval(0, 1)
    assert -1 <= between.low <= found.difference(0, 1) + 1e-9
    assert found.difference(0, 1) - 1e-9 <= between.high <= 1


@pytest.mark.parametrize("size", [25, 50])
@pytest.mark.parametrize("graded", [False, True])
def test_intervals_cover_the_truth(size: int, graded: bool) -> None:
    """Of a mean and of a difference, in 95 % of samples: 400 of them, so 92 % is within chance."""
    generator = np.random.default_rng(size)
    rounds, held = 400, [0, 0]
    truth = norm.cdf([0.4, 0.0]) if not graded else norm.cdf(np.array([0.4, 0.0]) / math.sqrt(2))
    for _ in range(rounds):
        ease = generator.standard_normal(size) * math.sqrt(0.5)
        ability = ease + generator.standard_normal((2, size)) * math.sqrt(0.5) + np.array([[0.4], [0.0]])
        found = Scores(norm.cdf(ability) if graded else ability > 0)
        mean, gap = found.interval(0), found.difference_interval(0, 1)
        held[0] += mean.low <= truth[0] <= mean.high
        held[1] += gap.low <= truth[0] - truth[1] <= gap.high
    assert min(held) >= 0.92 * rounds, held


def test_the_bootstrap_interval_is_near_students() -> None:
    values = np.random.default_rng(2).beta(5, 5, size=40)
    theirs = student.interval(0.95, 39, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(40))
    ours = Scores([values]).interval(0)
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.006)


def test_equal_scores_are_no_certainty() -> None:
    found = Scores([[0.5] * 20, [0.25] * 20, [1.0] * 20])
    assert found.interval(0).low < 0.4
    assert found.interval(2) == wilson(1.0, 20)
    between = found.difference_interval(0, 1)
    assert between.low < 0.25 <= between.high
    assert bonett_price(0, 0, 20).low == pytest.approx(-bonett_price(0, 0, 20).high)


def test_as_many_questions_as_are_needed_show_the_difference_in_four_of_five_cases() -> None:
    win, lose = 0.18, 0.08
    needed = Scores([[1.0] * 18 + [0.0] * 82, [0.0] * 18 + [1.0] * 8 + [0.0] * 74]).questions_needed(0, 1)
    assert needed is not None
    drawn = np.random.default_rng(1).multinomial(needed, [win, lose, 1 - win - lose], size=2000)
    shown = np.mean([mcnemar(int(wins), int(losses)) <= 0.05 for wins, losses, _ in drawn])
    assert shown == pytest.approx(0.8, abs=0.05)
    assert Scores([[1.0, 0.0], [0.0, 1.0]]).questions_needed(0, 1) is None


def answered(scores: list[float | None], **facts: Any) -> list[Answer]:
    return [Answer("said", score, None, 30, 10, 0.5 + place, **facts) for place, score in enumerate(scores)]


def results(**candidates: list[Answer]) -> ComparisonResults:
    kinds = {"base": "base", "prompt": "prompt"}
    return compute_results(
        ComparisonAnswers(
            [
                CandidateAnswers(
                    Candidate(
                        name=name,
                        type=kinds.get(name, "model"),
                        model=f"ft:{name}" if name not in kinds else "b",
                    ),  # type: ignore[arg-type]
                    answers,
                )
                for name, answers in candidates.items()
            ]
        )
    )


def test_failures_count_as_failures() -> None:
    answers = [
        *answered([1.0, 0.0]),
        Answer(None, None, "timeout"),
        Answer("judged badly", None, "the judge gave no judgement", 30, 10, 9.0),
    ]
    found = results(base=answers, tuned=answered([1.0, 1.0, 0.0, 0.0])).candidates[0]
    assert (found.questions, found.failures, found.ungraded) == (4, 2, 1)
    assert found.score == 0.25
    assert (found.tokens.input, found.tokens.output, found.tokens.per_1000_questions) == (90, 30, 40_000)
    assert found.latency is not None
    assert found.latency.p50 == pytest.approx(1.5)
    silent = results(base=[Answer(None, None, "down")] * 2, tuned=answered([1.0, 1.0])).candidates[0]
    assert (silent.latency, silent.tokens.per_1000_questions, silent.failures) == (None, 0, 2)


def test_every_pair_is_compared_once_and_corrected() -> None:
    found = results(
        base=answered([0.0] * 10 + [1.0] * 10),
        prompt=answered([0.0] * 5 + [1.0] * 15),
        tuned=answered([1.0] * 19 + [0.5]),
    )
    pairs = {(pair.a, pair.b): pair for pair in found.pairs}
    assert set(pairs) == {("base", "prompt"), ("base", "tuned"), ("prompt", "tuned")}
    first = pairs["base", "prompt"]
    assert (first.wins, first.ties, first.losses, first.test) == (0, 15, 5, "mcnemar")
    assert first.p_value == pytest.approx(binomtest(0, 5).pvalue)
    assert pairs["base", "tuned"].test == "permutation"
    assert [pair.p_adjusted for pair in found.pairs] == pytest.approx(
        holm([pair.p_value for pair in found.pairs])
    )


def test_slices_have_their_own_results() -> None:
    answers = answered([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    slices = [{"topic": "a", "id": str(n)} if n < 4 else {"id": str(n)} for n in range(6)]
    found = compute_results(
        ComparisonAnswers(
            [CandidateAnswers(Candidate(name="base", type="base", model="b"), answers)], slices=slices
        )
    )
    parts = {(part.key, part.value): part for part in found.candidates[0].slices}
    assert len(parts) == 7
    assert (parts["topic", "a"].questions, parts["topic", "a"].score) == (4, 0.5)
    many = [{"id": str(n)} for n in range(60)]
    named = compute_results(
        ComparisonAnswers(
            [CandidateAnswers(Candidate(name="base", type="base", model="b"), answered([1.0] * 60))],
            slices=many,
        )
    )
    assert named.candidates[0].slices == []


def curve(*shares: float, size: int = 200) -> CheckpointCurve:
    """Of checkpoints that answer the first so many questions right."""
    candidates = [
        CandidateAnswers(
            Candidate(
                name=f"step {step}",
                type="model",
                model=f"ft:{step}",
                job="job",
                step=step,
                is_final=step == len(shares),
            ),
            answered([float(place < share * size) for place in range(size)]),
        )
        for step, share in enumerate(shares, 1)
    ]
    base = CandidateAnswers(Candidate(name="base", type="base", model="b"), answered([0.0] * size))
    found = compute_results(ComparisonAnswers([*reversed(candidates), base]))
    assert len(found.checkpoints) == 1
    return found.checkpoints[0]


def test_the_curve_says_which_checkpoint_to_ship() -> None:
    risen = curve(0.3, 0.6, 0.9)
    assert [point.step for point in risen.points] == [1, 2, 3]
    assert (risen.best, risen.overfits) == ("ft:3", False)
    level = curve(0.3, 0.9, 0.9)
    assert (level.best, level.overfits) == ("ft:2", False)
    fallen = curve(0.3, 0.9, 0.6)
    assert (fallen.best, fallen.overfits) == ("ft:2", True)
    assert "Ship step 2" in fallen.sentence


def test_general_questions_show_what_was_lost() -> None:
    task = CandidateAnswers(Candidate(name="tuned", type="model", model="ft:1"), answered([1.0] * 30))
    base = CandidateAnswers(Candidate(name="base", type="base", model="b"), answered([0.0] * 30))
    general = GeneralAnswers(answered([1.0] * 40), {"tuned": answered([1.0] * 30 + [0.0] * 10)})
    found = compute_results(ComparisonAnswers([base, task], general=general))
    lost = found.regression[0]
    assert (lost.base_score, lost.score, lost.loss) == (1.0, 0.75, 0.25)
    assert lost.interval.low > 0.05
    assert lost.p_value == pytest.approx(binomtest(0, 10).pvalue)
    assert found.verdict.code == "fine_tuning_hurts"


def test_labels_give_a_macro_f1() -> None:
    said = ["yes", "yes", "no", "maybe"]
    answers = [Answer(text, 1.0) for text in said]
    found = compute_results(
        ComparisonAnswers(
            [CandidateAnswers(Candidate(name="base", type="base", model="b"), answers)],
            grader="label_f1",
            references=["Yes", "no", "no", "no."],
        )
    )
    assert found.candidates[0].macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_results_repeat_with_their_seed() -> None:
    generator = np.random.default_rng(4)
    answers = ComparisonAnswers(
        [
            CandidateAnswers(
                Candidate(name="base", type="base", model="b"), answered(generator.random(50).tolist())
            ),
            CandidateAnswers(
                Candidate(name="tuned", type="model", model="ft:1"), answered(generator.random(50).tolist())
            ),
        ],
        seed=7,
    )
    assert compute_results(answers) == compute_results(answers)


def test_no_answers_are_no_results() -> None:
    with pytest.raises(ValueError, match="one answer for each question"):
        compute_results(
            ComparisonAnswers([CandidateAnswers(Candidate(name="base", type="base", model="b"), [])])
        )
