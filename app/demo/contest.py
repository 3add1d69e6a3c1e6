"""Candidates that answer the same held-out questions, scored by exact match."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from app.demo.dataset import Question, Turn

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam

MAX_ANSWER_TOKENS = 32
"""The longest right answer has 25."""
CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model, and how it is asked."""

    name: str
    model: str
    ask: Callable[[Question], list[Turn]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it cost."""

    text: str
    correct: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """A candidate's answers, in the order of the questions."""

    candidate: Candidate
    answers: Sequence[Answer]

    @property
    def score(self) -> float:
        """Share of answers that equal the reference."""
        return sum(answer.correct for answer in self.answers) / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the score."""
        return wilson_interval(sum(answer.correct for answer in self.answers), len(self.answers))

    @property
    def prompt_tokens(self) -> float:
        """Mean per question."""
        return statistics.fmean(answer.prompt_tokens for answer in self.answers)

    @property
    def completion_tokens(self) -> float:
        """Mean per question."""
        return statistics.fmean(answer.completion_tokens for answer in self.answers)

    @property
    def median_seconds(self) -> float:
        """Median latency."""
        return statistics.median(answer.seconds for answer in self.answers)


def run_candidate(
    client: OpenAI, candidate: Candidate, questions: Sequence[Question], progress: Callable[[], None]
) -> Result:
    """Asks every question once, a few at a time; `progress` is called after each answer."""

    def ask(question: Question) -> Answer:
        started = time.perf_counter()
        completion = client.chat.completions.create(
            model=candidate.model,
            messages=cast("list[ChatCompletionMessageParam]", candidate.ask(question)),
            temperature=0,
            max_tokens=MAX_ANSWER_TOKENS,
        )
        seconds = time.perf_counter() - started
        text = (completion.choices[0].message.content or "").strip()
        usage = completion.usage
        progress()
        return Answer(
            text=text,
            correct=text == question.reference,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            seconds=seconds,
        )

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return Result(candidate, list(pool.map(ask, questions)))


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson, 1927); 95 % with the default z."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
