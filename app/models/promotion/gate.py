"""The gate: the rules of a promotion, evaluated on the results of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from app.comparisons.analysis.holm import holm
from app.comparisons.report.figures import percent, points
from app.comparisons.results import CandidateResult, CandidateType, ComparisonResults, Interval, PairResult
from app.core.errors import InvalidRequestError
from app.models.promotion.schemas import Beats, Opponent, RuleResult, Rules

_SIGNIFICANT = 0.05
_TYPES: dict[Opponent, tuple[CandidateType, ...]] = {"base": ("base",), "prompted": ("prompt", "few_shot")}


class _Duel(NamedTuple):
    """The candidate and one opponent of a `beats` rule."""

    pair: PairResult
    """The pair, seen from the candidate."""
    p: float
    """The p-value, corrected only for the number of opponents of the rule."""

    def is_won(self, delta: float) -> bool:
        """Return whether both the interval and the test show the candidate ahead by more than `delta`."""
        return self.pair.interval.low > delta and self.p <= _SIGNIFICANT

    def sentence(self, delta: float) -> str:
        """Return how far ahead the candidate is, and which conditions do not hold."""
        pair, lacking = self.pair, list[str]()
        if pair.interval.low <= delta:
            lacking.append(f"the interval's lower end is not above {_signed(delta) if delta else 0}")
        if self.p > _SIGNIFICANT:
            lacking.append(f"the test's p is above {_SIGNIFICANT}")
        result = (
            f"{pair.a} is {_signed(pair.difference)} against {pair.b} "
            f"({_range(pair.interval, signed=True)}, p = {self.p:.3g}): at 95 % "
            f"{'not ' if lacking else ''}better{f' by more than {points(delta)}' if delta else ''}"
        )
        return f"{result}: {' and '.join(lacking)}." if lacking else f"{result}."


def find_candidate(results: ComparisonResults, model: str) -> CandidateResult:
    """Return the candidate that is this model, without a prompt of its own.

    Raises:
        InvalidRequestError: the comparison has no such candidate.
    """
    found = _of_models(results, {model})
    if not found:
        raise InvalidRequestError(
            f"The comparison has no candidate '{model}'.", code="model_not_compared", param="model"
        )
    return found[0]


def evaluate(
    rules: Rules, results: ComparisonResults, candidate: CandidateResult, current: Collection[str]
) -> list[RuleResult]:
    """Return the result of each rule, in the order of `Rules`.

    `current` are the models that the alias points to, without the candidate's own.

    Raises:
        InvalidRequestError: there is no rule, or this comparison cannot answer one.
    """
    evaluated = list(_evaluate_rules(rules, results, candidate, current))
    if not evaluated:
        raise InvalidRequestError(
            "A gate needs a rule: min_score, beats, max_latency_ratio or max_regression.",
            code="missing_required_parameter",
            param="rules",
        )
    return evaluated


def _evaluate_rules(
    rules: Rules, results: ComparisonResults, candidate: CandidateResult, current: Collection[str]
) -> Iterator[RuleResult]:
    if rules.min_score is not None:
        yield _min_score(rules.min_score, candidate)
    for position, rule in enumerate(rules.beats):
        beats = rule if isinstance(rule, Beats) else Beats(candidate=rule)
        yield _beats(beats, results, candidate, current, param=f"rules.beats[{position}]")
    if rules.max_latency_ratio is not None:
        yield _max_latency_ratio(rules.max_latency_ratio, results, candidate)
    if rules.max_regression is not None:
        yield _max_regression(rules.max_regression, results, candidate)


def _min_score(required: float, candidate: CandidateResult) -> RuleResult:
    passed = candidate.score >= required
    return RuleResult(
        rule="min_score",
        passed=passed,
        required=required,
        actual=candidate.score,
        interval=candidate.interval,
        sentence=f"{candidate.name} scores {percent(candidate.score)} ({_range(candidate.interval)}); "
        f"{percent(required)} is asked for.",
    )


def _beats(
    rule: Beats,
    results: ComparisonResults,
    candidate: CandidateResult,
    current: Collection[str],
    *,
    param: str,
) -> RuleResult:
    """Evaluate the rule against the opponent that the candidate is least ahead of."""
    name = f"beats:{rule.candidate}"
    if rule.candidate == "current":
        if not current:
            sentence = "The alias points to no other model: there is nothing to beat."
            return RuleResult(rule=name, passed=True, required=rule.delta, actual=None, sentence=sentence)
        opponents = _of_models(results, current)
        lacking = set(current) - {opponent.model for opponent in opponents}
    else:
        opponents = [other for other in results.candidates if other.type in _TYPES[rule.candidate]]
        lacking = set[str]() if opponents else {rule.candidate}
    if lacking:
        raise InvalidRequestError(
            f"The comparison has no candidate '{sorted(lacking)[0]}' to be beaten.",
            code="candidate_not_compared",
            param=param,
        )
    others = [other for other in opponents if other.name != candidate.name]
    if not others:
        raise InvalidRequestError(
            f"'{candidate.name}' cannot beat itself.", code="candidate_not_compared", param=param
        )
    pairs = [_against(results, candidate.name, other.name, param) for other in others]
    duels = [_Duel(*duel) for duel in zip(pairs, holm([pair.p_value for pair in pairs]), strict=True)]
    duel = min(duels, key=lambda each: (each.is_won(rule.delta), each.pair.interval.low))
    return RuleResult(
        rule=name,
        passed=duel.is_won(rule.delta),
        required=rule.delta,
        actual=duel.pair.interval.low,
        interval=duel.pair.interval,
        p=duel.p,
        sentence=duel.sentence(rule.delta),
    )


def _max_latency_ratio(required: float, results: ComparisonResults, candidate: CandidateResult) -> RuleResult:
    bases = [other for other in results.candidates if other.type == "base" and other.latency is not None]
    if not bases:
        raise InvalidRequestError(
            "The comparison has no latency of the base to measure with.",
            code="candidate_not_compared",
            param="rules.max_latency_ratio",
        )
    base = bases[0]
    assert base.latency is not None
    if candidate.latency is None:
        ratio, sentence = None, f"{candidate.name} answered nothing."
    else:
        ratio = candidate.latency.p50 / base.latency.p50 if base.latency.p50 else None
        sentence = (
            f"{candidate.name} takes {candidate.latency.p50:.3g} s in the median, {base.name} "
            f"{base.latency.p50:.3g} s; {required:g} times as long is allowed."
        )
    return RuleResult(
        rule="max_latency_ratio",
        passed=ratio is not None and ratio <= required,
        required=required,
        actual=ratio,
        sentence=sentence,
    )


def _max_regression(required: float, results: ComparisonResults, candidate: CandidateResult) -> RuleResult:
    found = next((each for each in results.regression if each.candidate == candidate.name), None)
    if found is None:
        raise InvalidRequestError(
            f"The comparison asked '{candidate.name}' no general questions: give it a regression_file.",
            code="candidate_not_compared",
            param="rules.max_regression",
        )
    return RuleResult(
        rule="max_regression",
        passed=found.loss <= required,
        required=required,
        actual=found.loss,
        interval=found.interval,
        sentence=f"{candidate.name} lost {points(found.loss) if found.loss > 0 else 'nothing'} on general "
        f"questions (95 % interval {_range(found.interval, signed=True)}); "
        f"{points(required)} may be lost.",
    )


def _of_models(results: ComparisonResults, models: Collection[str]) -> list[CandidateResult]:
    return [
        other for other in results.candidates if other.type in ("model", "base") and other.model in models
    ]


def _against(results: ComparisonResults, name: str, other: str, param: str) -> PairResult:
    """Return the pair, seen from `name`."""
    pair = results.find_pair(name, other)
    if pair is not None:
        return pair
    raise InvalidRequestError(
        f"The comparison did not hold '{name}' against '{other}'.", code="candidate_not_compared", param=param
    )


def refusal(results: Sequence[RuleResult]) -> str:
    """Return why the gate says no."""
    return "The gate says no. " + " ".join(result.sentence for result in results if not result.passed)


def _signed(share: float) -> str:
    return f"{share * 100:+.1f} points"


def _range(interval: Interval, *, signed: bool = False) -> str:
    if signed:
        return f"{interval.low * 100:+.1f} to {interval.high * 100:+.1f}"
    return f"{percent(interval.low)} to {percent(interval.high)}"
