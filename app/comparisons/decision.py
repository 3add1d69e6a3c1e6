"""What a verdict is decided by, and what was decided, in figures and without prose."""

from __future__ import annotations

from typing import Literal

import msgspec

from app.comparisons.results import Interval, RegressionResult, VerdictCode

Reason = Literal[
    "no_tuned_candidate",
    "no_rival",
    "too_few_questions",
    "worse_than_base",
    "general_ability_lost",
    "rival_reaches_goal",
    "rival_is_better",
    "gain_within_margin",
    "better_than_every_rival",
    "better_but_general_ability_in_doubt",
    "interval_too_wide",
    "difference_not_shown",
]
"""The rule by which the verdict was decided: see `analysis.verdict`."""
CODES: dict[Reason, VerdictCode] = {
    "no_tuned_candidate": "not_enough_data",
    "no_rival": "not_enough_data",
    "too_few_questions": "not_enough_data",
    "worse_than_base": "fine_tuning_hurts",
    "general_ability_lost": "fine_tuning_hurts",
    "rival_reaches_goal": "prompting_is_enough",
    "rival_is_better": "prompting_is_enough",
    "gain_within_margin": "prompting_is_enough",
    "better_than_every_rival": "fine_tuning_wins",
    "better_but_general_ability_in_doubt": "no_difference_shown",
    "interval_too_wide": "not_enough_data",
    "difference_not_shown": "no_difference_shown",
}


class Thresholds(msgspec.Struct, frozen=True):
    """What the caller of a comparison asks for; scores and differences run from 0 to 1."""

    margin: float = 0.03
    """The smallest gain that matters: prompting that is behind by less is enough."""
    good_enough: float | None = None
    """A score that is enough for the caller's purpose, if one is known."""
    max_regression: float = 0.05
    """How much a fine-tuned model may lose on the general questions."""


class ScoredCandidate(msgspec.Struct, frozen=True):
    """A candidate and its mean score on the held-out questions."""

    name: str
    score: float


class Duel(msgspec.Struct, frozen=True):
    """The fine-tuned candidate that a decision is about, against one rival."""

    tuned: ScoredCandidate
    rival: ScoredCandidate
    difference: float
    """Score of `tuned` less that of `rival`."""
    interval: Interval
    """The 95 % interval of the difference."""
    p_value: float
    """The p-value that the decision rests on, corrected where the rule says so."""


class Decision(msgspec.Struct, frozen=True):
    """Which rule decided the verdict, and the figures behind it."""

    reason: Reason
    questions: int
    """Held-out questions that were asked."""
    candidates: int
    best: ScoredCandidate
    """The candidate with the highest score of all."""
    duel: Duel | None = None
    """None if there is no fine-tuned candidate, or no other."""
    general: RegressionResult | None = None
    """The duel's fine-tuned candidate on the general questions, if it was asked any."""
    questions_needed: int | None = None
    """How many questions would show the difference, if it is not shown."""

    @property
    def code(self) -> VerdictCode:
        """The verdict."""
        return CODES[self.reason]
