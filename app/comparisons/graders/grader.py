"""Graders: what makes an answer right. They are data, never a caller's code.

A grader is a JSON object with a `type`, or just the type's name for its default settings. `all`, `any` and
`weighted` combine others, and may be nested:

    {"type": "all", "graders": ["exact_match", {"type": "regex", "pattern": "^\\["}]}

The road: `parse_grader` once per request, `check_grader_fits` once per file, then for every answer
`judge_requests` (none, unless a model judges) and `grade`, which takes a tenth of a second where a pattern
runs wild: not for the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn, Self, cast

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.comparisons.graders.json_match import MAX_WEIGHT, JsonMatch, SchemaUnusableError
from app.comparisons.graders.model_grader import JudgeRequest, ModelGrader
from app.comparisons.graders.text import (
    Contains,
    ExactMatch,
    Grade,
    GraderModel,
    LabelF1,
    NormalizedMatch,
    Numeric,
    Regex,
    TextSimilarity,
)
from app.comparisons.questions import Question
from app.core.errors import InvalidRequestError

MAX_GRADERS = 20
MAX_DEPTH = 5
MAX_LABELS = 1000


class AllOf(GraderModel):
    """The lowest of its graders' scores: 1 if every one of them is satisfied."""

    type: Literal["all"] = "all"
    graders: list[Grader] = Field(min_length=1, max_length=MAX_GRADERS)


class AnyOf(GraderModel):
    """The highest of its graders' scores: 1 if one of them is satisfied."""

    type: Literal["any"] = "any"
    graders: list[Grader] = Field(min_length=1, max_length=MAX_GRADERS)


class Weighted(GraderModel):
    """The mean of its graders' scores by weight."""

    type: Literal["weighted"] = "weighted"
    graders: list[Grader] = Field(min_length=1, max_length=MAX_GRADERS)
    weights: list[Annotated[float, Field(gt=0, le=MAX_WEIGHT, allow_inf_nan=False)]]

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if len(self.weights) != len(self.graders):
            raise PydanticCustomError("weights", "needs one weight for each grader", {})
        return self


def _spelled_out(document: Any) -> Any:
    return {"type": document} if isinstance(document, str) else document


Combination = AllOf | AnyOf | Weighted
Single = (
    ExactMatch
    | NormalizedMatch
    | Contains
    | Regex
    | JsonMatch
    | LabelF1
    | TextSimilarity
    | Numeric
    | ModelGrader
)
Grader = Annotated[
    Single | Combination,
    Field(discriminator="type"),
    BeforeValidator(_spelled_out),
]
for combination in (AllOf, AnyOf, Weighted):
    combination.model_rebuild()
_grader: TypeAdapter[Grader] = TypeAdapter(Grader)


def parse_grader(document: Any, *, param: str = "grader") -> Grader:
    """The grader that a request describes.

    Raises:
        InvalidRequestError: it is none; `param` is the path of the field that is wrong.
    """
    _check_size(document, param)
    try:
        return _grader.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = _path(document, first["loc"], param)
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{path}: {message}.", code="invalid_grader", param=path) from None


def check_grader_fits(grader: Grader, questions: Sequence[Question], *, param: str = "grader") -> None:
    """Whether a grader can grade answers to these questions. Not for the event loop either.

    Raises:
        InvalidRequestError: it cannot; `param` is the grader's path, the message names the line of the file.
    """
    for path, leaf in _leaves(grader, param):
        if isinstance(leaf, ModelGrader):
            continue
        for question in questions:
            try:
                problem = leaf.misfit(question.reference)
            except SchemaUnusableError as error:
                _refuse(f"{path}.schema", f"cannot be applied to line {question.line}'s reference: {error}")
            if problem:
                _refuse(
                    path, f"{leaf.type} does not fit the file: line {question.line}'s reference {problem}"
                )
        if isinstance(leaf, LabelF1):
            labels = {leaf.label(question.reference) for question in questions}
            if len(labels) > MAX_LABELS or (len(questions) >= 20 and len(labels) > len(questions) / 2):
                _refuse(
                    path,
                    f"label_f1 does not fit the file: {len(labels)} different references in {len(questions)} "
                    "lines are free text, not labels",
                )
        if isinstance(leaf, JsonMatch):
            for name in leaf.fields or {}:
                if not any(leaf.has_field(question.reference, name) for question in questions):
                    _refuse(
                        f"{path}.fields.{name}",
                        "json_match does not fit the file: no reference has this field",
                    )


def judge_requests(grader: Grader, question: Question, answer: str) -> list[JudgeRequest]:
    """What judges must be asked before `grade`, for every `model` in the grader, in a fixed order."""
    return [
        request
        for _, leaf in _leaves(grader, "")
        if isinstance(leaf, ModelGrader)
        for request in leaf.requests(question, answer)
    ]


def grade(grader: Grader, question: Question, answer: str, replies: Sequence[str | None] = ()) -> Grade:
    """How good an answer is.

    Args:
        grader: what it is held against.
        question: with the reference.
        answer: what `questions.answer_text` makes of the assistant's turn.
        replies: the judges' texts, in the order of `judge_requests`; None for one that failed.

    Returns:
        The grade; its score is None, and its detail says why, where a judge or a pattern gave none.
    """
    return _grade(grader, question, answer, iter(replies))


def label_grader(document: Any) -> LabelF1 | None:
    """The grader of a document, if it is `label_f1` itself: its candidates get a macro F1."""
    kind = cast("dict[str, Any]", document).get("type") if isinstance(document, dict) else document
    grader = parse_grader(document) if kind == "label_f1" else None
    return grader if isinstance(grader, LabelF1) else None


def _grade(grader: Grader, question: Question, answer: str, replies: Iterator[str | None]) -> Grade:
    if isinstance(grader, ModelGrader):
        return grader.read([next(replies, None) for _ in grader.requests(question, answer)])
    if not isinstance(grader, Combination):
        return grader.grade(question.reference, answer)
    parts = [_grade(part, question, answer, replies) for part in grader.graders]
    detail = "; ".join(
        f"{part.type} {'failed' if given.score is None else format(given.score, '.3g')}"
        + (f" ({given.detail})" if given.detail else "")
        for part, given in zip(grader.graders, parts, strict=True)
    )
    scores = [part.score for part in parts if part.score is not None]
    if len(scores) < len(parts):
        return Grade(None, detail)
    if isinstance(grader, Weighted):
        weighed = sum(weight * score for weight, score in zip(grader.weights, scores, strict=True))
        return Grade(min(1.0, weighed / sum(grader.weights)), detail)
    return Grade(min(scores) if isinstance(grader, AllOf) else max(scores), detail)


def _leaves(grader: Grader, path: str) -> Iterator[tuple[str, Single]]:
    """Every grader that is no combination, with its path."""
    if isinstance(grader, Combination):
        for position, part in enumerate(grader.graders):
            yield from _leaves(part, f"{path}.graders[{position}]")
    else:
        yield path, grader


def _check_size(document: Any, param: str) -> None:
    """Before anything recurses into it."""
    count, level = 0, [document]
    for _ in range(MAX_DEPTH):
        count += len(level)
        level = [
            part
            for node in level
            if isinstance(node, dict)
            and isinstance(parts := cast("dict[str, Any]", node).get("graders"), list)
            for part in cast("list[Any]", parts)
        ]
    if level:
        _refuse(param, f"combines graders more than {MAX_DEPTH} levels deep")
    if count > MAX_GRADERS:
        _refuse(param, f"has {count} graders; at most {MAX_GRADERS} may be combined")


def _path(document: Any, location: tuple[int | str, ...], param: str) -> str:
    """Pydantic's location as a path in the document: without the types by which it chose a model."""
    path, node = param, document
    for step in location:
        kind: Any = cast("dict[str, Any]", node).get("type") if isinstance(node, dict) else node
        if step == kind and isinstance(step, str):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
        node = _inside(node, step)
    return path


def _inside(node: Any, step: int | str) -> Any:
    if isinstance(node, dict):
        return cast("dict[Any, Any]", node).get(step)
    if isinstance(node, list) and isinstance(step, int) and step < len(cast("list[Any]", node)):
        return cast("list[Any]", node)[step]
    return None


def _refuse(param: str, message: str) -> NoReturn:
    raise InvalidRequestError(f"{param}: {message}.", code="invalid_grader", param=param)
