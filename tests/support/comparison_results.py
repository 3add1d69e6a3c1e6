"""What comparisons found, made up: results, and rows that hold them."""

from __future__ import annotations

from typing import Any

from app.auth.models import Project
from app.comparisons.models import Answer, Comparison, Question
from app.comparisons.plan import Candidate, Plan
from app.comparisons.results import (
    CandidateResult,
    CandidateType,
    ComparisonResults,
    Interval,
    Latency,
    PairResult,
    RegressionResult,
    TokenCounts,
    Verdict,
)
from app.core.database import Database
from app.files.models import File
from tests.support.service import BASE_MODEL


def candidate(
    name: str,
    kind: CandidateType = "model",
    *,
    model: str = BASE_MODEL,
    score: float = 0.5,
    median: float | None = 1.0,
) -> CandidateResult:
    return CandidateResult(
        name=name,
        type=kind,
        model=model,
        questions=100,
        failures=0,
        score=score,
        interval=Interval(low=max(score - 0.1, 0), high=min(score + 0.1, 1)),
        tokens=TokenCounts(input=1000, output=100, per_1000_questions=11_000),
        latency=None if median is None else Latency(p50=median, p95=2 * median),
    )


def pair(a: str, b: str, difference: float, *, margin: float = 0.1, p: float = 0.001) -> PairResult:
    return PairResult(
        a=a,
        b=b,
        wins=60,
        ties=20,
        losses=20,
        difference=difference,
        interval=Interval(low=difference - margin, high=difference + margin),
        test="mcnemar",
        p_value=p,
        p_adjusted=min(1, 10 * p),
    )


def results(
    candidates: list[CandidateResult],
    pairs: list[PairResult],
    regression: list[RegressionResult] | None = None,
) -> ComparisonResults:
    verdict = Verdict(code="fine_tuning_wins", sentence="Fine-tuning wins.", questions=100)
    return ComparisonResults(candidates=candidates, pairs=pairs, regression=regression or [], verdict=verdict)


def regression(name: str, loss: float) -> RegressionResult:
    interval = Interval(low=loss - 0.03, high=loss + 0.03)
    return RegressionResult(
        candidate=name, base_score=0.9, score=0.9 - loss, loss=loss, interval=interval, p_value=0.2
    )


def add_comparison(
    database: Database, found: ComparisonResults, project: str = "default", **columns: Any
) -> str:
    """A comparison's row, with three questions that every candidate answered; returns its id."""
    candidates = [Candidate(name=each.name, type=each.type, model=each.model) for each in found.candidates]
    plan = Plan(
        candidates=candidates,
        grader="exact_match",
        general_grader="exact_match",
        questions=3,
        max_tokens=16,
        temperature=0,
        concurrency=1,
        seed=0,
        max_regression=0.05,
        margin=0.05,
        good_enough=0.9,
    )
    with database.writer() as session:
        owner = session.query(Project).filter_by(name=project).one()
        file = File(
            project_id=owner.id,
            filename="heldout.jsonl",
            purpose="fine-tune",
            bytes=1,
            sha256="",
            storage_key="k",
        )
        session.add(file)
        session.flush()
        row = {
            "project_id": owner.id,
            "status": "succeeded",
            "model": BASE_MODEL,
            "file_id": file.id,
            "plan": plan.model_dump(),
            "excluded": [],
            "total": 3 * len(candidates),
            "done": 3 * len(candidates),
            "results": found.model_dump(),
        }
        comparison = Comparison(**row | columns)
        session.add(comparison)
        session.flush()
        for number in range(3):
            content = {
                "line": number + 1,
                "messages": [{"role": "user", "content": f"Question {number} | <b>?"}],
                "reference": f"Reference {number}",
                "metadata": {},
            }
            session.add(
                Question(
                    comparison_id=comparison.id,
                    number=number,
                    content=content,
                )
            )
            for place in range(len(candidates)):
                session.add(
                    Answer(
                        comparison_id=comparison.id,
                        question=number,
                        candidate=place,
                        text=f"Answer {number} of @{candidates[place].name}\u000b\u0007",
                        score=number / 2,
                        input_tokens=1,
                        output_tokens=1,
                        seconds=1.0,
                    )
                )
        return comparison.id
