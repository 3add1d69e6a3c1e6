"""Is fine-tuning worth it? The rule, and the sentence that says what it found.

`tuned` are the fine-tuned candidates, `rivals` all others. External ones are no rivals where there are
others: they are another kitchen, not another way of asking this one. Tests are paired and two-sided at 5 %,
intervals are 95 %. From the top, the first that holds:

1. `not_enough_data`: no tuned candidate, no rival, or fewer than 20 questions.
2. `fine_tuning_hurts`: every tuned candidate is shown to be worse than the base as it is; or the general
   questions show of every one (by the interval) that it lost more than `max_regression`.
3. `prompting_is_enough`: a rival is shown to reach `good_enough`, where the caller has set that (lower end of
   its interval); or it is shown to be better than every tuned candidate; or no tuned candidate is ahead of it
   by more than `margin` (upper end of the interval of the difference). With several rivals each gets its part
   of the 5 % (Bonferroni), for any of them may be the lucky one.
4. `fine_tuning_wins`: a tuned candidate is shown to be better than *each* rival, and lost no more than
   `max_regression` on the general questions, if there are any. Having to beat every rival needs no correction
   for their number (intersection-union); tuned candidates are corrected for theirs (Holm).
5. `not_enough_data`: the interval of the difference reaches more than 10 points to a side.
6. `no_difference_shown`: all else.

So a false `fine_tuning_wins` or `fine_tuning_hurts` comes up in 5 % of all comparisons at most, whatever the
number of candidates; `benchmarks/verdict.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.comparisons.analysis.answers import Thresholds
from app.comparisons.analysis.holm import holm
from app.comparisons.analysis.statistics import Scores
from app.comparisons.plan import Candidate
from app.comparisons.report.figures import percent, points
from app.comparisons.results import Interval, RegressionResult, Verdict, VerdictCode

ALPHA = 0.05
MIN_QUESTIONS = 20
WIDEST = 0.10
"""Half the width of an interval that still says something."""


class _Duel(NamedTuple):
    """The tuned candidate and the rival that a sentence is about, as rows of the scores."""

    tuned: int
    rival: int


def find_verdict(
    candidates: Sequence[Candidate],
    scores: Scores,
    thresholds: Thresholds,
    regression: Mapping[str, RegressionResult] | None = None,
) -> Verdict:
    """The verdict by the rule above.

    Args:
        candidates: in the order of the scores' rows.
        scores: on the held-out questions.
        thresholds: what the caller sets.
        regression: of tuned candidates by name, where general questions were asked.
    """
    return _Judge(candidates, scores, thresholds, regression or {}).verdict()


class _Judge:
    def __init__(
        self,
        candidates: Sequence[Candidate],
        scores: Scores,
        thresholds: Thresholds,
        regression: Mapping[str, RegressionResult],
    ) -> None:
        self.candidates, self.scores, self.thresholds, self.regression = (
            candidates,
            scores,
            thresholds,
            regression,
        )
        rows = range(len(candidates))
        # The best comes first; of equals, the one that was named first.
        ranked = sorted(rows, key=lambda row: -scores.means[row])
        self.tuned = [row for row in ranked if candidates[row].is_tuned]
        others = [row for row in ranked if not candidates[row].is_tuned]
        self.rivals = [row for row in others if candidates[row].type != "external"] or others

    def verdict(self) -> Verdict:
        if not self.tuned or not self.rivals:
            return self._nothing_to_judge()
        best = _Duel(self.tuned[0], self.rivals[0])
        if self.scores.questions < MIN_QUESTIONS:
            return self._open(best, "not_enough_data")
        return (
            self._hurts() or self._is_enough() or self._wins() or self._spoilt_win() or self._open(best, None)
        )

    def _hurts(self) -> Verdict | None:
        base = next((row for row in self.rivals if self.candidates[row].type == "base"), None)
        if base is not None and all(self._is_better(base, row) for row in self.tuned):
            duel = _Duel(self.tuned[0], base)
            worst = max(self.scores.p_value(row, base) for row in self.tuned)
            return self._verdict(
                "fine_tuning_hurts",
                duel,
                f"Fine-tuning hurts: {self._scored(duel.tuned)} on {self._count}, the base as it is "
                f"{percent(self.scores.means[base])}: {self._gap(duel, 'less')}.",
                worst,
            )
        losses = [self.regression.get(self.candidates[row].name) for row in self.tuned]
        if all(loss is not None and loss.interval.low > self.thresholds.max_regression for loss in losses):
            duel, loss = _Duel(self.tuned[0], self.rivals[0]), losses[0]
            assert loss is not None
            return self._verdict(
                "fine_tuning_hurts",
                duel,
                f"Fine-tuning hurts: on general questions {loss.candidate} {_kept(loss)} against its base, "
                f"and {points(self.thresholds.max_regression)} are allowed; on yours "
                f"{self._scored(duel.tuned)}, {self._scored(duel.rival)}.",
            )
        return None

    def _is_enough(self) -> Verdict | None:
        share = ALPHA / len(self.rivals)
        goal, margin = self.thresholds.good_enough, self.thresholds.margin
        for rival in self.rivals:
            duel = _Duel(self.tuned[0], rival)
            said = f"Prompting is enough: {self._scored(rival)} on {self._count} without training"
            if goal is not None and self.scores.interval(rival, 1 - share).low >= goal:
                return self._verdict(
                    "prompting_is_enough",
                    duel,
                    f"{said}, and is shown to reach the {percent(goal)} that are called good enough; "
                    f"{self._scored(duel.tuned)}.",
                )
            if all(self._is_better(rival, row, share) for row in self.tuned):
                worst = max(self.scores.p_value(row, rival) for row in self.tuned) * len(self.rivals)
                return self._verdict(
                    "prompting_is_enough",
                    duel,
                    f"{said}, {self._scored(duel.tuned)}: {self._gap(duel, 'less')}.",
                    worst,
                )
            if all(
                self.scores.difference_interval(row, rival, 1 - share).high <= margin for row in self.tuned
            ):
                ahead = max(0.0, self.scores.difference_interval(duel.tuned, rival).high)
                return self._verdict(
                    "prompting_is_enough",
                    duel,
                    f"{said}, {self._scored(duel.tuned)}: at most {points(ahead)} more, "
                    f"and less than {points(margin)} do not matter.",
                )
        return None

    def _wins(self) -> Verdict | None:
        for row, p_value in self._winners():
            loss = self.regression.get(self.candidates[row].name)
            if loss is not None and loss.loss > self.thresholds.max_regression:
                continue
            duel = _Duel(row, self.rivals[0])
            kept = f" On general questions it {_kept(loss)}." if loss else ""
            return self._verdict(
                "fine_tuning_wins",
                duel,
                f"Fine-tuning wins: {self._scored(row)} on {self._count}, and the best without it, "
                f"{self._name(duel.rival)}, {percent(self.scores.means[duel.rival])}: "
                f"{self._gap(duel, 'more')}.{kept}",
                p_value,
            )
        return None

    def _spoilt_win(self) -> Verdict | None:
        """Better at its task, and worse elsewhere by more than is allowed, though that may be chance."""
        for row, p_value in self._winners():
            duel, loss = _Duel(row, self.rivals[0]), self.regression[self.candidates[row].name]
            return self._verdict(
                "no_difference_shown",
                duel,
                f"No clear gain is shown: {self._scored(row)} on {self._count}, "
                f"{self._gap(duel, 'more')} than {self._name(duel.rival)}; but on general questions it "
                f"{_kept(loss)}, and {points(self.thresholds.max_regression)} are allowed. "
                "More general questions would tell.",
                p_value,
            )
        return None

    def _open(self, duel: _Duel, code: VerdictCode | None) -> Verdict:
        interval = self.scores.difference_interval(*duel)
        reach = (interval.high - interval.low) / 2
        code = code or ("not_enough_data" if reach > WIDEST else "no_difference_shown")
        needed = self.scores.questions_needed(*duel)
        facts = f"{self._scored(duel.tuned)} on {self._count}, {self._scored(duel.rival)}"
        if code == "not_enough_data":
            narrow = math.ceil(self.scores.questions * (reach / WIDEST) ** 2)
            needed = max(MIN_QUESTIONS, min(needed or narrow, narrow))
            sentence = (
                f"Not enough data: {facts}; the true difference may be anything from "
                f"{_range(interval, signed=True)}. Ask about {needed:,} questions."
            )
        else:
            advice = f" About {needed:,} questions would show a difference of this size." if needed else ""
            sentence = f"No difference is shown: {facts}; chance alone can explain that.{advice}"
        return self._verdict(code, duel, sentence, self.scores.p_value(*duel), needed)

    def _nothing_to_judge(self) -> Verdict:
        missing = "a fine-tuned model" if not self.tuned else "a candidate without fine-tuning"
        best = max(range(len(self.candidates)), key=self.scores.means.__getitem__)
        return Verdict(
            code="not_enough_data",
            sentence=f"Not enough data: {missing} is not among the candidates; {self._scored(best)} on "
            f"{self._count}, the best of {len(self.candidates)}.",
            questions=self.scores.questions,
        )

    def _winners(self) -> list[tuple[int, float]]:
        """Tuned candidates that beat each rival, the best first, with their p-values."""
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

    def _verdict(
        self,
        code: VerdictCode,
        duel: _Duel,
        sentence: str,
        p_value: float | None = None,
        needed: int | None = None,
    ) -> Verdict:
        return Verdict(
            code=code,
            sentence=sentence,
            tuned=self.candidates[duel.tuned].name,
            prompted=self.candidates[duel.rival].name,
            difference=self.scores.difference(*duel),
            interval=self.scores.difference_interval(*duel),
            p_value=self.scores.p_value(*duel) if p_value is None else min(1.0, p_value),
            questions=self.scores.questions,
            questions_needed=needed,
        )

    @property
    def _count(self) -> str:
        return f"{self.scores.questions:,} held-out questions"

    def _name(self, row: int) -> str:
        return self.candidates[row].name

    def _scored(self, row: int) -> str:
        return f"{self._name(row)} scores {percent(self.scores.means[row])}"

    def _gap(self, duel: _Duel, word: str) -> str:
        """How far apart, and how sure that is: `12.0 points more (95 % interval 8.1 to 15.9)`."""
        interval = self.scores.difference_interval(*duel)
        if word == "less":
            interval = Interval(low=-interval.high, high=-interval.low)
        return f"{points(self.scores.difference(*duel))} {word} (95 % interval {_range(interval)})"


def _kept(loss: RegressionResult) -> str:
    if loss.loss > 0:
        return f"lost {points(loss.loss)} (95 % interval {_range(loss.interval)})"
    return "lost nothing"


def _range(interval: Interval, *, signed: bool = False) -> str:
    if signed:
        return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f} points"
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
