"""The rows of comparisons: many that have ended, one of them with its answers, and one being asked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from app.comparisons.models import Answer, Comparison, Question
from app.core.database import Base

QUESTIONS = 200
COMPARISON = "cmp_0000"
ASKED = "cmp_asked"
"""A comparison whose questions are being asked."""
_DAY = 86_400


def comparison_rows(
    project_id: str, base: str, models: Sequence[str]
) -> dict[type[Base], Iterable[Mapping[str, Any]]]:
    """Returns the rows by their table, in the order in which they refer to each other."""
    comparisons = _Comparisons(project_id, base, models)
    return {Comparison: comparisons.rows(), Question: _questions(), Answer: _answers()}


class _Comparisons:
    """One comparison for each model."""

    def __init__(self, project_id: str, base: str, models: Sequence[str]) -> None:
        self._project_id = project_id
        self._base = base
        self._models = models
        self._now = time.time()

    def rows(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self._models)):
            found = _results(self._base, self._models[number])
            yield self._comparison(f"cmp_{number:04}", "succeeded", 4 * QUESTIONS, found, number)
        yield self._comparison(ASKED, "running", 0, None, 0)

    def _comparison(
        self, id_: str, status: str, done: int, results: dict[str, Any] | None, number: int
    ) -> dict[str, Any]:
        model = self._models[number]
        candidates = [
            {"name": "base", "type": "base", "model": self._base},
            {"name": "8 examples", "type": "few_shot", "model": self._base},
            {"name": "tuned", "type": "model", "model": model},
            {"name": "checkpoint", "type": "model", "model": f"{model}:ckpt-step-25"},
        ]
        plan = {
            "candidates": candidates,
            "grader": "exact_match",
            "general_grader": "exact_match",
            "questions": QUESTIONS,
            "max_tokens": 64,
            "temperature": 0,
            "concurrency": 8,
            "seed": 0,
            "max_regression": 0.05,
            "margin": 0.05,
            "good_enough": 0.9,
        }
        return {
            "id": id_,
            "project_id": self._project_id,
            "name": f"team {number} against prompting",
            "status": status,
            "model": self._base,
            "file_id": f"file-{number % 200:04}",
            "plan": plan,
            "excluded": [],
            "total": 4 * QUESTIONS,
            "done": done,
            "results": results,
            "created_at": self._now - number * 3000,
            "lease_epoch": 1,
            "lease_until": self._now + _DAY if results is None else None,
        }


def _questions() -> Iterator[dict[str, Any]]:
    for number in range(QUESTIONS):
        question = f"Question {number}: may I bring back what I bought last week, without its box?"
        content = {
            "line": number + 1,
            "messages": [{"role": "user", "content": question}],
            "reference": "Yes, within 30 days.",
            "metadata": {},
        }
        yield {"comparison_id": COMPARISON, "number": number, "content": content}


def _answers() -> Iterator[dict[str, Any]]:
    for number in range(QUESTIONS):
        for candidate in range(4):
            yield {
                "comparison_id": COMPARISON,
                "question": number,
                "candidate": candidate,
                "text": "Yes, within 30 days. " * (1 + candidate),
                "score": float((number + candidate) % 3 == 0),
                "input_tokens": 60,
                "output_tokens": 12,
                "seconds": 0.8,
            }


def _results(base: str, model: str) -> dict[str, Any]:
    scores = {"base": 0.21, "8 examples": 0.47, "tuned": 0.86, "checkpoint": 0.8}
    kinds = {"base": "base", "8 examples": "few_shot"}
    candidates = [
        {
            "name": name,
            "type": kinds.get(name, "model"),
            "model": {"tuned": model, "checkpoint": f"{model}:ckpt-step-25"}.get(name, base),
            "questions": QUESTIONS,
            "failures": 0,
            "score": score,
            "interval": {"low": score - 0.05, "high": score + 0.05},
            "tokens": {"input": 12_000, "output": 2_400, "per_1000_questions": 72_000},
            "latency": {"p50": 0.8, "p95": 1.1},
        }
        for name, score in scores.items()
    ]
    pairs = [
        {
            "a": "tuned",
            "b": other,
            "wins": 120,
            "ties": 60,
            "losses": 20,
            "difference": scores["tuned"] - scores[other],
            "interval": {"low": 0.01, "high": scores["tuned"] - scores[other] + 0.1},
            "test": "mcnemar",
            "p_value": 0.001,
            "p_adjusted": 0.003,
        }
        for other in ("base", "8 examples", "checkpoint")
    ]
    sentence = "Fine-tuning wins: 86 % against 47 % for the best prompt."
    verdict = {"code": "fine_tuning_wins", "sentence": sentence, "questions": QUESTIONS}
    return {"candidates": candidates, "pairs": pairs, "regression": [], "verdict": verdict}
