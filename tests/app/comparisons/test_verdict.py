"""The verdict: each rule, and how often it is wrong on simulated comparisons."""

from __future__ import annotations

import pytest

from app.comparisons.analysis.statistics import Scores
from app.comparisons.analysis.verdict import find_verdict
from app.comparisons.decision import Thresholds
from app.comparisons.plan import Candidate
from app.comparisons.results import Interval, RegressionResult, Verdict
from benchmarks.verdict import Line, mcnemar_power, simulate

KINDS = {"base": "base", "prompt": "prompt", "few_shot": "few_shot", "external": "external"}
ROUNDS = 600


def row(right: int, size: int, start: int = 0) -> list[float]:
    return [float(start <= place < start + right) for place in range(size)]


def verdict(
    thresholds: Thresholds | None = None,
    lost: dict[str, tuple[float, float, float]] | None = None,
    **scores: list[float],
) -> Verdict:
    candidates = [
        Candidate(name=name, type=KINDS.get(name, "model"), model="b" if name in KINDS else f"ft:{name}")  # type: ignore[arg-type]
        for name in scores
    ]
    regression = {
        name: RegressionResult(
            candidate=name,
            base_score=0.8,
            score=0.8 - loss,
            loss=loss,
            interval=Interval(low=low, high=high),
            p_value=0.5,
        )
        for name, (low, loss, high) in (lost or {}).items()
    }
    return find_verdict(candidates, Scores(list(scores.values())), thresholds or Thresholds(), regression)


def test_fine_tuning_wins_over_every_rival() -> None:
    found = verdict(base=row(2, 100), prompt=row(40, 100), tuned=row(90, 100))
    assert found.code == "fine_tuning_wins"
    assert (found.tuned, found.prompted, found.questions) == ("tuned", "prompt", 100)
    assert found.difference == pytest.approx(0.5)
    assert found.interval is not None
    assert found.interval.low > 0.3
    assert found.p_value is not None
    assert found.p_value < 1e-9
    assert found.sentence == (
        "Fine-tuning wins: tuned scores 90.0 % on 100 held-out questions, and the best without it, prompt, "
        "40.0 %: 50.0 points more (95 % interval 38.9 to 59.1)."
    )


def test_one_rival_that_is_not_beaten_is_enough_to_not_win() -> None:
    found = verdict(base=row(2, 100), few_shot=row(80, 100), tuned=row(84, 100, 10))
    assert found.code in {"no_difference_shown", "not_enough_data"}
    assert found.prompted == "few_shot"


def test_the_best_of_the_winners_is_named() -> None:
    found = verdict(base=row(10, 200), early=row(120, 200), late=row(180, 200))
    assert (found.code, found.tuned) == ("fine_tuning_wins", "late")


def test_prompting_that_is_better_is_enough() -> None:
    found = verdict(base=row(10, 100), prompt=row(90, 100), tuned=row(60, 100))
    assert (found.code, found.prompted) == ("prompting_is_enough", "prompt")
    assert found.difference == pytest.approx(-0.3)


def test_prompting_that_is_as_good_within_the_margin_is_enough() -> None:
    found = verdict(base=row(300, 1000), prompt=row(950, 1000), tuned=row(955, 1000))
    assert found.code == "prompting_is_enough"
    assert "do not matter" in found.sentence
    strict = verdict(
        Thresholds(margin=0.001), base=row(300, 1000), prompt=row(940, 1000), tuned=row(955, 1000)
    )
    assert strict.code == "fine_tuning_wins"


def test_prompting_that_reaches_the_goal_is_enough() -> None:
    scores = {"prompt": row(180, 200), "tuned": row(198, 200)}
    assert verdict(**scores).code == "fine_tuning_wins"
    assert verdict(Thresholds(good_enough=0.8), **scores).code == "prompting_is_enough"
    assert verdict(Thresholds(good_enough=0.89), **scores).code == "fine_tuning_wins"


def test_worse_than_the_base_as_it_is_hurts() -> None:
    found = verdict(base=row(80, 100), prompt=row(95, 100), tuned=row(40, 100))
    assert (found.code, found.prompted) == ("fine_tuning_hurts", "base")
    assert "40.0 points less" in found.sentence
    assert verdict(base=row(80, 100), tuned=row(40, 100), late=row(95, 100)).code != "fine_tuning_hurts"


def test_general_ability_that_is_shown_to_be_lost_hurts() -> None:
    scores = {"base": row(10, 100), "tuned": row(90, 100)}
    assert verdict(lost={"tuned": (0.06, 0.2, 0.3)}, **scores).code == "fine_tuning_hurts"
    assert verdict(lost={"tuned": (0.01, 0.04, 0.08)}, **scores).code == "fine_tuning_wins"
    unsure = verdict(lost={"tuned": (-0.01, 0.08, 0.16)}, **scores)
    assert unsure.code == "no_difference_shown"
    assert "lost 8.0 points" in unsure.sentence
    assert (
        verdict(Thresholds(max_regression=0.1), lost={"tuned": (-0.01, 0.08, 0.16)}, **scores).code
        == "fine_tuning_wins"
    )
    assert "lost nothing" in verdict(lost={"tuned": (-0.1, -0.02, 0.03)}, **scores).sentence


def test_a_winner_that_lost_too_much_gives_way_to_one_that_did_not() -> None:
    found = verdict(
        lost={"greedy": (0.1, 0.2, 0.3), "modest": (0, 0.01, 0.02)},
        base=row(10, 100),
        greedy=row(90, 100),
        modest=row(80, 100),
    )
    assert (found.code, found.tuned) == ("fine_tuning_wins", "modest")


def test_too_few_questions_say_nothing() -> None:
    found = verdict(base=row(0, 19), tuned=row(19, 19))
    assert found.code == "not_enough_data"
    assert found.questions_needed == 20
    wide = verdict(base=row(30, 60), tuned=row(33, 60, 20))
    assert wide.code == "not_enough_data"
    assert wide.questions_needed is not None
    assert wide.questions_needed > 60
    assert f"Ask about {wide.questions_needed:,} questions" in wide.sentence


def test_no_difference_comes_with_advice() -> None:
    found = verdict(base=row(200, 400), tuned=row(212, 400, 20))
    assert found.code == "no_difference_shown"
    assert found.questions_needed is not None
    assert found.questions_needed > 400
    assert f"About {found.questions_needed:,} questions" in found.sentence
    assert verdict(base=row(200, 400), tuned=row(200, 400, 20)).questions_needed is None


def test_without_two_sides_there_is_no_verdict() -> None:
    assert "a fine-tuned model is not among" in verdict(base=row(5, 50), prompt=row(9, 50)).sentence
    assert "without fine-tuning is not among" in verdict(tuned=row(5, 50), late=row(9, 50)).sentence


def test_an_external_model_is_a_rival_only_where_there_is_no_other() -> None:
    with_base = verdict(base=row(10, 100), external=row(99, 100), tuned=row(80, 100))
    assert (with_base.code, with_base.prompted) == ("fine_tuning_wins", "base")
    alone = verdict(external=row(99, 100), tuned=row(80, 100))
    assert (alone.code, alone.prompted) == ("prompting_is_enough", "external")


def test_another_base_model_is_no_fine_tuned_one() -> None:
    other = Candidate(name="bigger", type="model", model="a-bigger-base")
    assert not other.is_tuned
    assert Candidate(name="tuned", type="model", model="ft:b:p:s:1").is_tuned


@pytest.mark.parametrize(("rivals", "tuned"), [(1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("size", [20, 60, 200])
def test_where_there_is_nothing_to_find_it_is_rarely_found(rivals: int, tuned: int, size: int) -> None:
    found = simulate(Line(rivals, tuned, 0.0, size), ROUNDS, seed=size)
    assert found["fine_tuning_wins"] <= 0.05 * ROUNDS
    assert found["fine_tuning_hurts"] <= 0.05 * ROUNDS


def test_a_true_loss_at_the_limit_rarely_hurts() -> None:
    found = simulate(Line(1, 1, 0.0, 100, loss=0.05), ROUNDS, seed=1)
    assert found["fine_tuning_hurts"] <= 0.07 * ROUNDS  # 5 %, and what 600 rounds may add by chance


def test_its_power_is_that_of_mcnemars_test() -> None:
    line = Line(1, 1, 0.15, 100)
    theory = mcnemar_power(line)
    assert theory == pytest.approx(0.72, abs=0.1)
    assert simulate(line, ROUNDS, seed=3)["fine_tuning_wins"] / ROUNDS == pytest.approx(theory, abs=0.06)
