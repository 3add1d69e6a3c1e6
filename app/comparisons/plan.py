"""What was settled when a comparison was created: nothing in the plan can come to mean something else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.comparisons.results import CandidateType


class Candidate(BaseModel):
    """One way of answering: a model, and how it is asked. A checkpoint is of type `model`, too."""

    name: str
    """The candidate's name, unique in the comparison."""
    type: CandidateType
    model: str
    """Served name of the model that is asked."""
    requested_model: str | None = None
    """The name that the request used for the model, if it was another one."""
    system: str | None = None
    """The system prompt that replaces a question's own."""
    examples: int | None = None
    """Examples that are shown before each question."""
    file: str | None = None
    """The file that the examples are drawn from."""
    seed: int = 0
    selection: Literal["random", "nearest"] | None = None
    base_url: str | None = None
    """The address of an external endpoint."""
    job: str | None = None
    """The fine-tuning job that made the model; two or more candidates of a job make a checkpoint curve."""
    step: int | None = None
    """The training step whose weights these are; the job's last step for its final model."""
    is_final: bool = False
    """Whether this is the model that the job published at its end."""

    @property
    def is_tuned(self) -> bool:
        """Whether this is a fine-tuned model; a candidate of type `model` may also be another base."""
        return self.type == "model" and self.model.startswith("ft:")


class Plan(BaseModel):
    """Who is asked what, and how it is graded."""

    candidates: list[Candidate]
    guard: Candidate | None = None
    """The base model, asked only the general questions; None if it is a candidate itself."""
    grader: str | dict[str, Any]
    general_grader: str | dict[str, Any]
    questions: int
    """Held-out questions, without those that were excluded."""
    general_questions: int = 0
    max_tokens: int
    temperature: float
    concurrency: int
    seed: int
    max_regression: float
    margin: float
    good_enough: float | None
    unchecked_files: list[str] = []
    """Training files that are no longer in storage, so that overlap with them could not be checked."""

    @property
    def all_candidates(self) -> list[Candidate]:
        """Everyone who is asked; an answer refers to its candidate by the place in this list."""
        return [*self.candidates, *([self.guard] if self.guard else [])]

    @property
    def general_base(self) -> int:
        """The place of the candidate that stands for the base model on the general questions."""
        plain = (place for place, candidate in enumerate(self.candidates) if candidate.type == "base")
        return len(self.candidates) if self.guard else next(plain)

    @property
    def general_candidates(self) -> list[int]:
        """The places of the candidates that are asked the general questions, the base model first."""
        if not self.general_questions:
            return []
        tuned = [place for place, candidate in enumerate(self.candidates) if candidate.type == "model"]
        return [self.general_base, *tuned]

    @property
    def total(self) -> int:
        """The number of answers that the comparison asks for."""
        return self.questions * len(self.candidates) + self.general_questions * len(self.general_candidates)
