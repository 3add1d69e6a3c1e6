"""Comparisons as the API takes and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from app.comparisons.models import Answer, Comparison
from app.comparisons.models import Question as QuestionRow
from app.comparisons.plan import Candidate, Plan
from app.comparisons.questions import Question
from app.comparisons.results import (
    CandidateResult,
    CandidateType,
    ComparisonResults,
    Interval,
    Latency,
    TokenCounts,
    Verdict,
)
from app.completions.schemas import Temperature, Tokens
from app.core.pagination import Identified
from app.fine_tuning.schemas import Metadata

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\u0000-\u001f]*$")]
SystemPrompt = Annotated[str, StringConstraints(min_length=1, max_length=200_000, pattern=r"^[^\u0000]*$")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _CreateCandidate(BaseModel):
    """The fields that all candidates share."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    """The candidate's name, unique in the comparison; derived from its type or model if absent."""


class BaseCandidate(_CreateCandidate):
    """The base model as it is."""

    type: Literal["base"]


class PromptCandidate(_CreateCandidate):
    """The base model with a system prompt, which replaces the question's own."""

    type: Literal["prompt"]
    system: SystemPrompt


class FewShotCandidate(_CreateCandidate):
    """The base model, shown examples before each question."""

    type: Literal["few_shot"]
    examples: Annotated[int, Field(ge=1, le=128, strict=True)]
    file: str
    """The file that the examples are drawn from."""
    system: SystemPrompt | None = None
    seed: Seed | None = None
    """The seed of the draw; the comparison's if absent."""
    selection: Literal["random", "nearest"] = "random"
    """Whether all questions are shown the same examples, or each the ones most similar to it."""


class ModelCandidate(_CreateCandidate):
    """Any model of the project: a fine-tuned one, a checkpoint, or another base model."""

    type: Literal["model"]
    model: Annotated[str, Field(min_length=1, max_length=255)]


class CheckpointsCandidate(_CreateCandidate):
    """Every model that a job has saved, each as a candidate named by its step."""

    type: Literal["checkpoints"]
    job: str


class ExternalCandidate(_CreateCandidate):
    """A model at another OpenAI-compatible endpoint, one of TOQUE_EXTERNAL_ENDPOINTS."""

    type: Literal["external"]
    base_url: Annotated[str, Field(min_length=1, max_length=2048)]
    api_key: SecretStr | None = None
    """The endpoint's key; kept until the comparison ends, and never shown."""
    model: Annotated[str, Field(min_length=1, max_length=255)]


CreateCandidate = Annotated[
    BaseCandidate
    | PromptCandidate
    | FewShotCandidate
    | ModelCandidate
    | CheckpointsCandidate
    | ExternalCandidate,
    Field(discriminator="type"),
]
GraderDocument = str | dict[str, Any]
"""A grader's name, or its document: see docs/comparisons.md."""


class CreateComparison(BaseModel):
    """A request to compare candidates."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """The file of held-out questions: conversations whose last turn is the reference."""
    model: str
    """The base model."""
    candidates: Annotated[list[CreateCandidate], Field(min_length=1, max_length=64)]
    grader: GraderDocument
    name: Name | None = None
    max_tokens: Tokens = 256
    """The most tokens of each answer."""
    temperature: Temperature = 0.0
    concurrency: Annotated[int, Field(ge=1, le=256, strict=True)] = 16
    """The number of requests that are sent at once."""
    seed: Seed = 0
    metadata: Metadata | None = None
    exclude_training_overlap: bool = True
    """Whether held-out questions that are also in a training file are left out."""
    training_file: str | None = None
    """The training file to check for overlap, instead of those that candidates use or were trained on."""
    regression_file: str | None = None
    """The file of general questions, asked of the base model and of every fine-tuned candidate."""
    regression_grader: GraderDocument | None = None
    max_regression: Share = 0.05
    """How much a fine-tuned candidate may lose on the general questions."""
    margin: Share = 0.03
    """The smallest gain in score that matters."""
    good_enough: Share | None = None
    """A score that is enough for the purpose, if one is known."""


class Progress(BaseModel):
    """How many of the answers are there."""

    done: int
    total: int


class ExcludedLine(BaseModel):
    """A held-out line that was left out, since its question is also in a training file."""

    line: int
    training_file: str


class Excluded(BaseModel):
    """The held-out lines that were left out."""

    count: int
    lines: list[ExcludedLine]
    unchecked_files: list[str]
    """Training files that are no longer in storage, so that overlap could not be checked."""


class ComparisonError(BaseModel):
    """Why a comparison failed."""

    code: str
    message: str
    param: str | None = None


class CandidateObject(BaseModel):
    """A candidate as it is asked and, once all is graded, how it did."""

    name: str
    type: CandidateType
    model: str
    """Served name of the model that is asked, which never changes its meaning."""
    requested_model: str | None = None
    """The name in the request, if it was an alias."""
    system: str | None = None
    examples: int | None = None
    selection: str | None = None
    file: str | None = None
    base_url: str | None = None
    job: str | None = None
    step: int | None = None
    questions: int | None = None
    failures: int | None = None
    score: float | None = None
    interval: Interval | None = None
    macro_f1: float | None = None
    tokens: TokenCounts | None = None
    latency: Latency | None = None

    @classmethod
    def of(cls, candidate: Candidate, result: CandidateResult | None) -> CandidateObject:
        """The candidate as the API shows it."""
        fields = cls.model_fields.keys()
        found = result.model_dump(include=fields & CandidateResult.model_fields.keys()) if result else {}
        return cls.model_validate(
            found | candidate.model_dump(include=fields & Candidate.model_fields.keys())
        )


class ComparisonObject(Identified):
    """A comparison."""

    object: Literal["comparison"] = "comparison"
    name: str | None
    status: Status
    model: str
    file: str
    grader: GraderDocument
    candidates: list[CandidateObject]
    progress: Progress
    excluded: Excluded
    questions: int
    """Held-out questions that are asked, without those that were excluded."""
    regression_file: str | None
    regression_grader: GraderDocument | None
    max_regression: float
    margin: float
    good_enough: float | None
    max_tokens: int
    temperature: float
    concurrency: int
    seed: int
    metadata: dict[str, str] | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    error: ComparisonError | None
    verdict: Verdict | None
    """The verdict, as in `results`."""
    results: ComparisonResults | None

    @classmethod
    def of(cls, comparison: Comparison) -> ComparisonObject:
        """The row as the API shows it."""
        plan = Plan.model_validate(comparison.plan)
        results = ComparisonResults.model_validate(comparison.results) if comparison.results else None
        scored = {result.name: result for result in results.candidates} if results else {}
        return cls(
            id=comparison.id,
            name=comparison.name,
            status=comparison.status,  # pyright: ignore[reportArgumentType] - checked by pydantic
            model=comparison.model,
            file=comparison.file_id,
            grader=plan.grader,
            candidates=[
                CandidateObject.of(candidate, scored.get(candidate.name)) for candidate in plan.candidates
            ],
            progress=Progress(done=comparison.done, total=comparison.total),
            excluded=Excluded(
                count=len(comparison.excluded),
                lines=[ExcludedLine.model_validate(line) for line in comparison.excluded],
                unchecked_files=plan.unchecked_files,
            ),
            questions=plan.questions,
            regression_file=comparison.regression_file_id,
            regression_grader=plan.general_grader if comparison.regression_file_id else None,
            max_regression=plan.max_regression,
            margin=plan.margin,
            good_enough=plan.good_enough,
            max_tokens=plan.max_tokens,
            temperature=plan.temperature,
            concurrency=plan.concurrency,
            seed=plan.seed,
            metadata=comparison.comparison_metadata,
            created_at=int(comparison.created_at),
            started_at=_seconds(comparison.started_at),
            finished_at=_seconds(comparison.finished_at),
            error=ComparisonError.model_validate(comparison.error) if comparison.error else None,
            verdict=results.verdict if results else None,
            results=results,
        )


class ItemAnswer(BaseModel):
    """One candidate's answer to a question."""

    candidate: str
    text: str | None
    """The answer's text or, if it has none, its tool calls as JSON."""
    tool_calls: list[dict[str, Any]] | None
    """The answer's tool calls, as a chat completion has them."""
    score: float | None
    """The grade; null until all is graded. A question with an error counts as 0."""
    error: str | None
    input_tokens: int
    output_tokens: int
    latency: float | None
    """Seconds from the question to the whole answer."""


class ItemObject(Identified):
    """A question, its reference, and the answers to it so far."""

    object: Literal["comparison.item"] = "comparison.item"
    file: str
    """The file of the question: the held-out one, or the regression file."""
    line: int
    messages: list[dict[str, Any]]
    """The conversation up to the answer."""
    reference: str
    reference_tool_calls: list[dict[str, Any]] | None
    metadata: dict[str, str]
    answers: list[ItemAnswer]

    @classmethod
    def of(
        cls, comparison: Comparison, plan: Plan, row: QuestionRow, answers: Sequence[Answer]
    ) -> ItemObject:
        """The rows as the API shows them."""
        question = msgspec.convert(row.content, Question)
        is_general = row.number >= plan.questions
        return cls(
            id=row.id,
            file=(comparison.regression_file_id if is_general else None) or comparison.file_id,
            line=question.line,
            messages=question.messages,
            reference=question.reference,
            reference_tool_calls=question.reference_tool_calls,
            metadata=question.metadata,
            answers=[
                ItemAnswer(
                    candidate=plan.all_candidates[answer.candidate].name
                    or plan.all_candidates[answer.candidate].model,
                    text=answer.text,
                    tool_calls=answer.tool_calls,
                    score=answer.score,
                    error=answer.error,
                    input_tokens=answer.input_tokens,
                    output_tokens=answer.output_tokens,
                    latency=answer.seconds,
                )
                for answer in answers
            ],
        )


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
