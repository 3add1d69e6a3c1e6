"""What a comparison finds: each candidate's score, how pairs of them differ, and the verdict.

Shares and scores run from 0 to 1, latencies are seconds, intervals are 95 % unless they say otherwise.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

CandidateType = Literal["base", "prompt", "few_shot", "model", "external"]
VerdictCode = Literal[
    "fine_tuning_wins", "prompting_is_enough", "no_difference_shown", "fine_tuning_hurts", "not_enough_data"
]


class Interval(BaseModel):
    """Where the true value lies, as far as the data says."""

    low: float
    high: float


class Latency(BaseModel):
    """Seconds from question to whole answer."""

    p50: float
    p95: float


class TokenCounts(BaseModel):
    """Of all the candidate's answered questions together."""

    input: int
    output: int
    per_1000_questions: int
    """Input and output, for a thousand questions like these."""


class SliceResult(BaseModel):
    """A candidate on the questions that share a value of a metadata key."""

    key: str
    value: str
    questions: int
    score: float
    interval: Interval


class CandidateResult(BaseModel):
    """How one candidate did on all questions; a question that it failed to answer counts as 0."""

    name: str
    """Unique in the comparison."""
    type: CandidateType
    model: str
    """Served name of the model that was asked."""
    questions: int
    failures: int
    """Questions without an answer: the model or the judge failed."""
    ungraded: int = 0
    """Those failures that had an answer: the judge spoke nonsense, or a pattern took too long."""
    score: float
    """Mean over all questions."""
    interval: Interval
    macro_f1: float | None = None
    """Over the labels that the references have, each counting the same; of a `label_f1` grader alone."""
    tokens: TokenCounts
    latency: Latency | None
    """None where nothing was answered."""
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
    """A job's checkpoints over steps: which one to ship, and whether training went on too long."""

    job: str
    points: list[CheckpointPoint]
    best: str
    """The earliest model that is within one standard error of the one with the highest score."""
    overfits: bool
    """An earlier checkpoint is better than the final model, by paired tests at 5 %, corrected (Holm)."""
    sentence: str


class RegressionResult(BaseModel):
    """How much of its base's general ability a fine-tuned model lost, on a second file."""

    candidate: str
    base_score: float
    score: float
    loss: float
    """Base's score less the model's: above 0 is a loss."""
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
    """Adjusted."""
    questions: int
    questions_needed: int | None = None
    """Sample-size advice where nothing can be concluded: that many would show the difference seen."""


class ComparisonResults(BaseModel):
    """Everything that is computed once all questions are answered and graded."""

    candidates: list[CandidateResult]
    pairs: list[PairResult]
    checkpoints: list[CheckpointCurve] = []
    regression: list[RegressionResult] = []
    verdict: Verdict
