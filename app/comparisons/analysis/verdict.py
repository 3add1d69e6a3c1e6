"""Is fine-tuning worth it? This is the rule; the sentence that tells the result is in `report.verdict_text`.

`tuned` are the fine-tuned candidates and `rivals` all others. External candidates are rivals only if there
are no others: they are other models, not other ways of asking this one. Tests are paired and two-sided at
5 %, and intervals are 95 %. From the top, the first condition that holds decides:

1. `not_enough_data`: there is no tuned candidate, no rival, or fewer than 20 questions.
2. `fine_tuning_hurts`: every tuned candidate is shown to be worse than the base as it is; or the general
   questions show of every one (by the interval) that it lost more than `max_regression`.
3. `prompting_is_enough`: a rival is shown to reach `good_enough`, if the caller has set it (lower end of the
   rival's interval); or a rival is shown to be better than every tuned candidate; or no tuned candidate is
   ahead of it by more than `margin` (upper end of the interval of the difference). With several rivals, each
   gets its part of the 5 % (Bonferroni), since any of them may be the lucky one.
4. `fine_tuning_wins`: a tuned candidate is shown to be better than *each* rival, and lost no more than
   `max_regression` on the general questions, if there are any. Having to beat every rival needs no correction
   for their number (intersection-union); tuned candidates are corrected for theirs (Holm). If candidates beat
   each rival, but every one of them lost too much, the verdict is `no_difference_shown`.
5. `not_enough_data`: the interval of the difference reaches more than 10 points to each side.
6. `no_difference_shown`: none of the above.

So a false `fine_tuning_wins` or `fine_tuning_hurts` comes up in 5 % of all comparisons at most, whatever the
number of candidates; `benchmarks/verdict.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from app.comparisons.analysis.holm import holm
from app.comparisons.analysis.statistics import Scores
from app.comparisons.decision import Decision, Duel, Reason, ScoredCandidate, Thresholds
from app.comparisons.plan import Candidate
from app.comparisons.report.verdict_text import verdict_sentence
from app.comparisons.results import RegressionResult, Verdict

ALPHA = 0.05
MIN_QUESTIONS = 20
MAX_REACH = 0.10
"""Half the width of the widest interval that still tells something."""


def find_verdict(
    candidates: Sequence[Candidate],
    scores: Scores,
    thresholds: Thresholds,
    regression: Mapping[str, RegressionResult] | None = None,
) -> Verdict:
    """Return the verdict as it is shown: the decision, and the sentence that tells it."""
    decision = decide(candidates, scores, thresholds, regression or {})
    duel = decision.duel
    return Verdict(
        code=decision.code,
        sentence=verdict_sentence(decision, thresholds),
        tuned=duel.tuned.name if duel else None,
        prompted=duel.rival.name if duel else None,
        difference=duel.difference if duel else None,
        interval=duel.interval if duel else None,
        p_value=duel.p_value if duel else None,
        questions=decision.questions,
        questions_needed=decision.questions_needed,
    )


def decide(
    candidates: Sequence[Candidate],
    scores: Scores,
    thresholds: Thresholds,
    regression: Mapping[str, RegressionResult],
) -> Decision:
    """Decide by the rule above.

    Args:
        candidates: the candidates, in the order of the scores' rows.
        scores: their scores on the held-out questions.
        thresholds: what the caller asks for.
        regression: the tuned candidates on the general questions by name, if any were asked.
    """
    rules = _Rules(candidates, scores, thresholds, regression)
    return (
        rules.missing_side()
        or rules.too_few_questions()
        or rules.hurts()
        or rules.prompting_is_enough()
        or rules.wins()
        or rules.undecided()
    )


class _Rules:
    """The rules over one comparison. Each returns its decision if it holds; rows are those of the scores."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        scores: Scores,
        thresholds: Thresholds,
        regression: Mapping[str, RegressionResult],
    ) -> None:
        self.candidates = candidates
        self.scores = scores
        self.thresholds = thresholds
        self.regression = regression
        # The best comes first; of equals, the one that was named first.
        self.ranked = sorted(range(len(candidates)), key=lambda row: -scores.means[row])
        self.tuned = [row for row in self.ranked if candidates[row].is_tuned]
        others = [row for row in self.ranked if not candidates[row].is_tuned]
        self.rivals = [row for row in others if candidates[row].type != "external"] or others

    def missing_side(self) -> Decision | None:
        if not self.tuned:
            return self._decision("no_tuned_candidate")
        return None if self.rivals else self._decision("no_rival")

    def too_few_questions(self) -> Decision | None:
        return self._not_enough_data("too_few_questions") if self.scores.questions < MIN_QUESTIONS else None

    def hurts(self) -> Decision | None:
        base = next((row for row in self.rivals if self.candidates[row].type == "base"), None)
        if base is not None and all(self._is_better(base, row) for row in self.tuned):
            worst = max(self.scores.p_value(row, base) for row in self.tuned)
            return self._decision("worse_than_base", self._duel(self.tuned[0], base, worst))
        losses = [self._general(row) for row in self.tuned]
        limit = self.thresholds.max_regression
        if all(loss is not None and loss.interval.low > limit for loss in losses):
            return self._decision("general_ability_lost", self._duel(self.tuned[0], self.rivals[0]))
        return None

    def prompting_is_enough(self) -> Decision | None:
        share = ALPHA / len(self.rivals)
        goal, margin = self.thresholds.good_enough, self.thresholds.margin
        best = self.tuned[0]
        for rival in self.rivals:
            if goal is not None and self.scores.interval(rival, 1 - share).low >= goal:
                return self._decision("rival_reaches_goal", self._duel(best, rival))
            if all(self._is_better(rival, row, share) for row in self.tuned):
                worst = max(self.scores.p_value(row, rival) for row in self.tuned) * len(self.rivals)
                return self._decision("rival_is_better", self._duel(best, rival, worst))
            intervals = (self.scores.difference_interval(row, rival, 1 - share) for row in self.tuned)
            if all(interval.high <= margin for interval in intervals):
                return self._decision("gain_within_margin", self._duel(best, rival))
        return None

    def wins(self) -> Decision | None:
        """Decide for a tuned candidate that beats each rival, or name what keeps it from winning."""
        winners = self._winners()
        for row, p_value in winners:
            loss = self._general(row)
            if loss is None or loss.loss <= self.thresholds.max_regression:
                return self._decision("better_than_every_rival", self._duel(row, self.rivals[0], p_value))
        if winners:
            row, p_value = winners[0]
            duel = self._duel(row, self.rivals[0], p_value)
            return self._decision("better_but_general_ability_in_doubt", duel)
        return None

    def undecided(self) -> Decision:
        best = self.tuned[0], self.rivals[0]
        if self._reach() > MAX_REACH:
            return self._not_enough_data("interval_too_wide")
        needed = self.scores.questions_needed(*best)
        return self._decision("difference_not_shown", self._duel(*best), needed)

    def _not_enough_data(self, reason: Reason) -> Decision:
        best = self.tuned[0], self.rivals[0]
        narrow = math.ceil(self.scores.questions * (self._reach() / MAX_REACH) ** 2)
        needed = max(MIN_QUESTIONS, min(self.scores.questions_needed(*best) or narrow, narrow))
        return self._decision(reason, self._duel(*best), needed)

    def _reach(self) -> float:
        """Return half the width of the interval between the best tuned candidate and the best rival."""
        interval = self.scores.difference_interval(self.tuned[0], self.rivals[0])
        return (interval.high - interval.low) / 2

    def _winners(self) -> list[tuple[int, float]]:
        """Return the tuned candidates that beat each rival, the best first, with their p-values."""
        hardest = [
            max(self.scores.p_value(row, rival) if self._leads(row, rival) else 1.0 for rival in self.rivals)
            for row in self.tuned
        ]
        adjusted = holm(hardest)
        return [(row, p) for row, p in zip(self.tuned, adjusted, strict=True) if p <= ALPHA]

    def _is_better(self, one: int, other: int, share: float = ALPHA) -> bool:
        return self._leads(one, other) and self.scores.p_value(one, other) <= share

    def _leads(self, one: int, other: int) -> bool:
        return self.scores.means[one] > self.scores.means[other]

    def _general(self, row: int) -> RegressionResult | None:
        return self.regression.get(self.candidates[row].name)

    def _scored(self, row: int) -> ScoredCandidate:
        return ScoredCandidate(self.candidates[row].name, self.scores.means[row])

    def _duel(self, tuned: int, rival: int, p_value: float | None = None) -> Duel:
        return Duel(
            tuned=self._scored(tuned),
            rival=self._scored(rival),
            difference=self.scores.difference(tuned, rival),
            interval=self.scores.difference_interval(tuned, rival),
            p_value=self.scores.p_value(tuned, rival) if p_value is None else min(1.0, p_value),
        )

    def _decision(self, reason: Reason, duel: Duel | None = None, needed: int | None = None) -> Decision:
        return Decision(
            reason=reason,
            questions=self.scores.questions,
            candidates=len(self.candidates),
            best=self._scored(self.ranked[0]),
            duel=duel,
            general=self.regression.get(duel.tuned.name) if duel else None,
            questions_needed=needed,
        )
