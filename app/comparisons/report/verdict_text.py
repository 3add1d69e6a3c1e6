"""The sentence that tells a manager what a comparison found."""

from __future__ import annotations

from app.comparisons.decision import Decision, Duel, ScoredCandidate, Thresholds
from app.comparisons.report.figures import percent, points
from app.comparisons.results import Interval, RegressionResult


def verdict_sentence(decision: Decision, thresholds: Thresholds) -> str:
    """Return the verdict as one sentence or two."""
    duel = decision.duel
    if duel is None:
        return _missing_side(decision)
    match decision.code:
        case "fine_tuning_hurts":
            return _hurts(decision, duel, thresholds)
        case "prompting_is_enough":
            return _is_enough(decision, duel, thresholds)
        case "fine_tuning_wins":
            return _wins(decision, duel)
        case "no_difference_shown":
            return _no_difference(decision, duel, thresholds)
        case "not_enough_data":
            return _not_enough_data(decision, duel)


def _missing_side(decision: Decision) -> str:
    missing = (
        "a fine-tuned model" if decision.reason == "no_tuned_candidate" else "a candidate without fine-tuning"
    )
    return (
        f"Not enough data: {missing} is not among the candidates; {_scores(decision.best)} on "
        f"{_questions(decision)}, the best of {decision.candidates}."
    )


def _hurts(decision: Decision, duel: Duel, thresholds: Thresholds) -> str:
    if decision.reason == "worse_than_base":
        return (
            f"Fine-tuning hurts: {_scores(duel.tuned)} on {_questions(decision)}, the base as it is "
            f"{percent(duel.rival.score)}: {_less(duel)}."
        )
    general = _general(decision)
    return (
        f"Fine-tuning hurts: on general questions {general.candidate} {_lost(general)} against its base, "
        f"and {points(thresholds.max_regression)} are allowed; on yours "
        f"{_scores(duel.tuned)}, {_scores(duel.rival)}."
    )


def _is_enough(decision: Decision, duel: Duel, thresholds: Thresholds) -> str:
    start = f"Prompting is enough: {_scores(duel.rival)} on {_questions(decision)} without training"
    if decision.reason == "rival_reaches_goal":
        assert thresholds.good_enough is not None
        goal = percent(thresholds.good_enough)
        return (
            f"{start}, and is shown to reach the {goal} that are called good enough; {_scores(duel.tuned)}."
        )
    if decision.reason == "rival_is_better":
        return f"{start}, {_scores(duel.tuned)}: {_less(duel)}."
    return (
        f"{start}, {_scores(duel.tuned)}: at most {points(max(0.0, duel.interval.high))} more, "
        f"and less than {points(thresholds.margin)} do not matter."
    )


def _wins(decision: Decision, duel: Duel) -> str:
    general = f" On general questions it {_lost(decision.general)}." if decision.general else ""
    return (
        f"Fine-tuning wins: {_scores(duel.tuned)} on {_questions(decision)}, and the best without it, "
        f"{duel.rival.name}, {percent(duel.rival.score)}: {_more(duel)}.{general}"
    )


def _no_difference(decision: Decision, duel: Duel, thresholds: Thresholds) -> str:
    if decision.reason == "better_but_general_ability_in_doubt":
        return (
            f"No clear gain is shown: {_scores(duel.tuned)} on {_questions(decision)}, "
            f"{_more(duel)} than {duel.rival.name}; but on general questions it "
            f"{_lost(_general(decision))}, and {points(thresholds.max_regression)} are allowed. "
            "More general questions would tell."
        )
    needed = decision.questions_needed
    advice = f" About {needed:,} questions would show a difference of this size." if needed else ""
    return f"No difference is shown: {_facts(decision, duel)}; chance alone can explain that.{advice}"


def _not_enough_data(decision: Decision, duel: Duel) -> str:
    low, high = 100 * duel.interval.low, 100 * duel.interval.high
    return (
        f"Not enough data: {_facts(decision, duel)}; the true difference may be anything from "
        f"{low:+.1f} to {high:+.1f} points. Ask about {decision.questions_needed:,} questions."
    )


def _facts(decision: Decision, duel: Duel) -> str:
    return f"{_scores(duel.tuned)} on {_questions(decision)}, {_scores(duel.rival)}"


def _questions(decision: Decision) -> str:
    return f"{decision.questions:,} held-out questions"


def _scores(candidate: ScoredCandidate) -> str:
    return f"{candidate.name} scores {percent(candidate.score)}"


def _more(duel: Duel) -> str:
    """Return the gain and how sure it is: `12.0 points more (95 % interval 8.1 to 15.9)`."""
    return f"{points(duel.difference)} more (95 % interval {_range(duel.interval)})"


def _less(duel: Duel) -> str:
    turned = Interval(low=-duel.interval.high, high=-duel.interval.low)
    return f"{points(duel.difference)} less (95 % interval {_range(turned)})"


def _general(decision: Decision) -> RegressionResult:
    assert decision.general is not None, decision.reason
    return decision.general


def _lost(general: RegressionResult) -> str:
    if general.loss > 0:
        return f"lost {points(general.loss)} (95 % interval {_range(general.interval)})"
    return "lost nothing"


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
