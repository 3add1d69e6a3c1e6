"""The results of a comparison: each candidate's score, how pairs of them differ, and the verdict.

Shares and scores run from 0 to 1, latencies are in seconds, and intervals are 95 % intervals.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

CandidateType = Literal["base", "prompt", "few_shot", "model", "external"]
VerdictCode = Literal[
    "fine_tuning_wins", "prompting_is_enough", "no_difference_shown", "fine_tuning_hurts", "not_enough_data"
]


class Interval(BaseModel):
    """An interval that the true value lies in, as far as the data tells."""

    low: float
    high: float


class Latency(BaseModel):
    """The median and 95th percentile of the seconds from question to whole answer."""

    p50: float
    p95: float


class TokenCounts(BaseModel):
    """The tokens of all questions that the candidate answered."""

    input: int
    output: int
    per_1000_questions: int
    """Input and output tokens for a thousand questions like these."""


class SliceResult(BaseModel):
    """A candidate's result on the questions that share a value of a metadata key."""

    key: str
    value: str
    questions: int
    score: float
    interval: Interval


class CandidateResult(BaseModel):
    """One candidate's result on all questions; a question without a score counts as 0."""

    name: str
    """The candidate's name, unique in the comparison."""
    type: CandidateType
    model: str
    """Served name of the model that was asked."""
    questions: int
    failures: int
    """Questions without a score: the model or the judge failed."""
    ungraded: int = 0
    """Failures that had an answer: the judge's reply was not usable, or a pattern took too long."""
    score: float
    """Mean score over all questions."""
    interval: Interval
    macro_f1: float | None = None
    """The F1 score averaged over the references' labels; only with a `label_f1` grader."""
    tokens: TokenCounts
    latency: Latency | None
    """None if no question was answered."""
    slices: list[SliceResult] = []


class PairResult(BaseModel):
    """Two candidates on the same questions; wins and losses are `a`'s."""

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    difference: float
    """Mean score of `a` less that of `b`."""
    interval: Interval
    test: Literal["mcnemar", "permutation"]
    p_value: float
    p_adjusted: float
    """The p-value corrected for the number of pairs in the comparison (Holm)."""

    def reversed(self) -> PairResult:
        """Return the same pair, seen from the other side."""
        return PairResult(
            a=self.b,
            b=self.a,
            wins=self.losses,
            ties=self.ties,
            losses=self.wins,
            difference=-self.difference,
            interval=Interval(low=-self.interval.high, high=-self.interval.low),
            test=self.test,
            p_value=self.p_value,
            p_adjusted=self.p_adjusted,
        )


class CheckpointPoint(BaseModel):
    """One step of a job's checkpoint curve."""

    model: str
    step: int
    score: float
    interval: Interval
    is_final: bool


class CheckpointCurve(BaseModel):
    """A job's checkpoints over its steps: which one to ship, and whether training went on too long."""

    job: str
    points: list[CheckpointPoint]
    best: str
    """The earliest model that is within one standard error of the one with the highest score."""
    overfits: bool
    """Whether an earlier checkpoint is better than the final model, by paired tests at 5 % (Holm)."""
    sentence: str


class RegressionResult(BaseModel):
    """How much of its base's general ability a fine-tuned model lost, on a second file."""

    candidate: str
    base_score: float
    score: float
    loss: float
    """The base's score less the model's, so that a loss is above 0."""
    interval: Interval
    p_value: float


class Verdict(BaseModel):
    """The answer in one word, one sentence for a manager, and the figures behind it."""

    code: VerdictCode
    sentence: str
    tuned: str | None = None
    """The fine-tuned candidate that the verdict is about."""
    prompted: str | None = None
    """The best candidate without fine-tuning."""
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    """The p-value behind the verdict, corrected for the number of candidates."""
    questions: int
    questions_needed: int | None = None
    """How many questions would show the observed difference; only if nothing could be concluded."""


class ComparisonResults(BaseModel):
    """All results, computed once every question is answered and graded."""

    candidates: list[CandidateResult]
    pairs: list[PairResult]
    checkpoints: list[CheckpointCurve] = []
    regression: list[RegressionResult] = []
    verdict: Verdict

    def find_pair(self, name: str, other: str) -> PairResult | None:
        """Return the result of two candidates as seen from the first; None if they were not compared."""
        for pair in self.pairs:
            if (pair.a, pair.b) == (name, other):
                return pair
            if (pair.a, pair.b) == (other, name):
                return pair.reversed()
        return None
