"""Assembles the results of a comparison from its graded answers.

This imports numpy, so only child processes import it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from app.comparisons.analysis.answers import Answer, CandidateAnswers, ComparisonAnswers, GeneralAnswers
from app.comparisons.analysis.holm import holm
from app.comparisons.analysis.statistics import Scores
from app.comparisons.analysis.verdict import ALPHA, find_verdict
from app.comparisons.graders.label_f1 import LabelF1
from app.comparisons.graders.registry import label_grader
from app.comparisons.report.checkpoint_text import checkpoint_sentence
from app.comparisons.results import (
    CandidateResult,
    CheckpointCurve,
    CheckpointPoint,
    ComparisonResults,
    Latency,
    PairResult,
    RegressionResult,
    SliceResult,
    TokenCounts,
)

MAX_SLICES = 50
"""The most values of a metadata key; a key with more identifies questions and makes no slices."""


def compute_results(answers: ComparisonAnswers) -> ComparisonResults:
    """Return all results of a comparison. The same answers and seed give the same results.

    Raises:
        ValueError: there is no question, or a candidate does not have one answer for each.
    """
    rows = [_scores(of.answers) for of in answers.candidates]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("every candidate needs one answer for each question, and there must be one")
    scores = Scores(rows, answers.seed)
    regression = _regression(answers.general, answers.seed) if answers.general else []
    slices = _slices(answers, scores)
    labels = label_grader(answers.grader)
    return ComparisonResults(
        candidates=[
            _candidate(of, scores, row, slices[row], macro_f1(labels, answers.references, of.answers))
            for row, of in enumerate(answers.candidates)
        ],
        pairs=_pairs(answers.candidates, scores),
        checkpoints=_checkpoints(answers.candidates, scores),
        regression=regression,
        verdict=find_verdict(
            [of.candidate for of in answers.candidates],
            scores,
            answers.thresholds,
            {found.candidate: found for found in regression},
        ),
    )


def macro_f1(grader: LabelF1 | None, references: Sequence[str], answers: Sequence[Answer]) -> float | None:
    """Return the mean over the references' labels of F1: 2 hits / (2 hits + false alarms + misses).

    An answer that is none of these labels counts as a miss of the reference's label, and as no false alarm.
    """
    if grader is None or len(references) != len(answers):
        return None
    wanted = [grader.label(reference) for reference in references]
    given = [grader.label(answer.text or "") for answer in answers]
    hits = Counter(label for label, read in zip(wanted, given, strict=True) if label == read)
    misses, alarms = Counter(wanted), Counter(given)
    return sum(2 * hits[label] / (misses[label] + alarms[label]) for label in misses) / len(misses)


def _scores(answers: Sequence[Answer]) -> list[float]:
    return [answer.score or 0.0 for answer in answers]


def _candidate(
    of: CandidateAnswers, scores: Scores, row: int, slices: list[SliceResult], f1: float | None
) -> CandidateResult:
    answered = [answer for answer in of.answers if answer.text is not None]
    read = sum(answer.input_tokens for answer in answered)
    written = sum(answer.output_tokens for answer in answered)
    seconds = [answer.seconds for answer in answered if answer.seconds is not None]
    p50, p95 = np.percentile(seconds, [50, 95]).tolist() if seconds else (0.0, 0.0)
    return CandidateResult(
        name=of.candidate.name,
        type=of.candidate.type,
        model=of.candidate.model,
        questions=len(of.answers),
        failures=sum(answer.score is None for answer in of.answers),
        ungraded=sum(answer.score is None and answer.text is not None for answer in of.answers),
        score=scores.means[row],
        interval=scores.interval(row),
        macro_f1=f1,
        tokens=TokenCounts(
            input=read,
            output=written,
            per_1000_questions=round(1000 * (read + written) / len(answered)) if answered else 0,
        ),
        latency=Latency(p50=p50, p95=p95) if seconds else None,
        slices=slices,
    )


def _pairs(candidates: Sequence[CandidateAnswers], scores: Scores) -> list[PairResult]:
    pairs = [(one, other) for one in range(len(candidates)) for other in range(one + 1, len(candidates))]
    p_values = [scores.p_value(*pair) for pair in pairs]
    results: list[PairResult] = []
    for (one, other), p_value, adjusted in zip(pairs, p_values, holm(p_values), strict=True):
        wins, losses = scores.counts(one, other)
        results.append(
            PairResult(
                a=candidates[one].candidate.name,
                b=candidates[other].candidate.name,
                wins=wins,
                ties=scores.questions - wins - losses,
                losses=losses,
                difference=scores.difference(one, other),
                interval=scores.difference_interval(one, other),
                test=scores.test(one, other),
                p_value=p_value,
                p_adjusted=adjusted,
            )
        )
    return results


def _slices(answers: ComparisonAnswers, scores: Scores) -> list[list[SliceResult]]:
    """Return for each candidate its results by metadata key and value."""
    found: list[list[SliceResult]] = [[] for _ in answers.candidates]
    for key in sorted({key for metadata in answers.slices for key in metadata}):
        values = [metadata.get(key) for metadata in answers.slices]
        kinds = sorted({value for value in values if value is not None})
        if len(kinds) > MAX_SLICES:
            continue
        for kind in kinds:
            columns = [place for place, value in enumerate(values) if value == kind]
            part = Scores(scores.rows[:, columns], answers.seed)
            for row, results in enumerate(found):
                results.append(
                    SliceResult(
                        key=key,
                        value=kind,
                        questions=part.questions,
                        score=part.means[row],
                        interval=part.interval(row),
                    )
                )
    return found


def _checkpoints(candidates: Sequence[CandidateAnswers], scores: Scores) -> list[CheckpointCurve]:
    jobs: dict[str, list[tuple[int, int]]] = {}
    for row, of in enumerate(candidates):
        if of.candidate.job is not None and of.candidate.step is not None:
            jobs.setdefault(of.candidate.job, []).append((of.candidate.step, row))
    return [_curve(job, sorted(steps), candidates, scores) for job, steps in jobs.items() if len(steps) > 1]


def _curve(
    job: str, steps: list[tuple[int, int]], candidates: Sequence[CandidateAnswers], scores: Scores
) -> CheckpointCurve:
    rows = [row for _, row in steps]
    top = max(rows, key=scores.means.__getitem__)
    best = next(row for row in rows if scores.difference(top, row) <= scores.standard_error(top, row))
    final = next((row for row in rows if candidates[row].candidate.is_final), rows[-1])
    earlier = rows[: rows.index(final)]
    p_values = holm([scores.p_value(row, final) for row in earlier])
    overfits = any(
        p_value <= ALPHA and scores.means[row] > scores.means[final]
        for row, p_value in zip(earlier, p_values, strict=True)
    )
    points = {
        row: CheckpointPoint(
            model=candidates[row].candidate.model,
            step=step,
            score=scores.means[row],
            interval=scores.interval(row),
            is_final=row == final,
        )
        for step, row in steps
    }
    return CheckpointCurve(
        job=job,
        points=list(points.values()),
        best=points[best].model,
        overfits=overfits,
        sentence=checkpoint_sentence(points[top], points[best], points[final], overfits=overfits),
    )


def _regression(general: GeneralAnswers, seed: int) -> list[RegressionResult]:
    names = list(general.tuned)
    scores = Scores([_scores(general.base), *(_scores(general.tuned[name]) for name in names)], seed)
    return [
        RegressionResult(
            candidate=name,
            base_score=scores.means[0],
            score=scores.means[row],
            loss=scores.difference(0, row),
            interval=scores.difference_interval(0, row),
            p_value=scores.p_value(0, row),
        )
        for row, name in enumerate(names, 1)
    ]
