"""What a model scored in comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from app.comparisons.models import Comparison
from app.comparisons.results import CandidateResult, ComparisonResults, PairResult
from app.models.adapters.models import Adapter

_MOST_COMPARISONS = 10
_CLOCKS_SECONDS = 86400.0
"""By how much the clocks of machines may differ, and more."""


@dataclass(frozen=True, slots=True)
class Score:
    """A model's result in a comparison, beside the best that was there without fine-tuning."""

    comparison: Comparison
    results: ComparisonResults
    candidate: CandidateResult
    rival: CandidateResult | None
    """The best base model or prompt."""
    lead: PairResult | None
    """The model against that, seen from the model."""


def find_scores(session: Session, adapter: Adapter) -> Sequence[Score]:
    """Return the newest results of the adapter; a comparison with it is younger than it is."""
    query = (
        select(Comparison)
        .where(
            Comparison.project_id == adapter.project_id,
            Comparison.status == "succeeded",
            Comparison.created_at >= adapter.created_at - _CLOCKS_SECONDS,
            cast(Comparison.plan, Text).contains(adapter.name, autoescape=True),
        )
        .order_by(Comparison.created_at.desc(), Comparison.id.desc())
        .limit(_MOST_COMPARISONS)
    )
    return [score for comparison in session.scalars(query) for score in _scores(comparison, adapter.name)]


def _scores(comparison: Comparison, model: str) -> Iterator[Score]:
    results = ComparisonResults.model_validate(comparison.results)
    rivals = [each for each in results.candidates if each.type in ("base", "prompt", "few_shot")]
    rival = max(rivals, key=lambda each: each.score, default=None)
    for candidate in results.candidates:
        if candidate.type == "model" and candidate.model == model:
            lead = None if rival is None else results.find_pair(candidate.name, rival.name)
            yield Score(comparison, results, candidate, rival, lead)
