"""OpenAI's `multi` grader: a formula over the rewards of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import Grade, Grader, JudgeRequest
from app.comparisons.graders.combinations import MAX_GRADERS
from app.comparisons.graders.formula import (
    MAX_FORMULA,
    FormulaError,
    check_formula,
    evaluate_formula,
)
from app.comparisons.graders.label_model import LabelModel
from app.comparisons.graders.score_model import ScoreModel
from app.comparisons.graders.similarity_check import SimilarityCheck
from app.comparisons.graders.string_check import StringCheck
from app.comparisons.graders.template_grader import Name, refuse_python
from app.comparisons.questions import Question

Part = Annotated[
    StringCheck | SimilarityCheck | ScoreModel | LabelModel,
    Field(discriminator="type"),
    BeforeValidator(refuse_python),
]
Graders = dict[str, Part] | list[Part] | Part
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


def _form(graders: Any) -> str:
    """Return which of three forms this is: OpenAI's guide, examples and specification have one each."""
    if isinstance(graders, list | tuple):
        return "in_a_list"
    if isinstance(graders, dict):
        graders = cast("dict[str, Any]", graders).get("type")
    is_one = isinstance(graders, Grader | str)
    return "just_one" if is_one else "by_name"


class Multi(Grader):
    """Gives what a formula gives for the rewards of its graders.

    With graders by name, the formula has these names. Otherwise it has the name of each grader that is a
    variable's, and `<type>_score` for each grader that is the only one of its type.
    """

    type: Literal["multi"]
    name: Name
    graders: Annotated[
        Annotated[dict[Variable, Part], Field(min_length=1, max_length=MAX_GRADERS), Tag("by_name")]
        | Annotated[list[Part], Field(min_length=1, max_length=MAX_GRADERS), Tag("in_a_list")]
        | Annotated[Part, Tag("just_one")],
        Discriminator(_form),
    ]
    calculate_output: Annotated[str, Field(min_length=1, max_length=MAX_FORMULA)]

    @field_validator("graders")
    @classmethod
    def _names_differ(cls, graders: Graders) -> Graders:
        """Refuse names that two graders have, also where one's name is `<type>_score` of another."""
        names = Counter(name for names, _, _ in _parts(graders) for name in set(names))
        if twice := [name for name, count in names.items() if count > 1]:
            raise PydanticCustomError("names", "{name} names two graders", {"name": repr(twice[0])})
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _formula_fits(cls, formula: str, fields: ValidationInfo) -> str:
        if "graders" not in fields.data:
            return formula  # they have an error of their own
        variables = [name for names, _, _ in _parts(fields.data["graders"]) for name in names]
        try:
            check_formula(formula, variables)
        except FormulaError as error:
            raise PydanticCustomError("formula", "{reason}", {"reason": str(error)}) from None
        return formula

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        for _, path, part in _parts(self.graders):
            part.check_fits(questions, param=param + path)

    @property
    @override
    def has_judges(self) -> bool:
        return any(part.has_judges for _, _, part in _parts(self.graders))

    @override
    def judge_requests(
        self, question: Question, answer: str, tool_calls: Sequence[dict[str, Any]] = ()
    ) -> list[JudgeRequest]:
        return [
            msgspec.structs.replace(request, path=path + request.path)
            for _, path, part in _parts(self.graders)
            for request in part.judge_requests(question, answer, tool_calls)
        ]

    @override
    def grade(
        self,
        question: Question,
        answer: str,
        replies: Sequence[str | None] = (),
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> Grade:
        rewards: dict[str, float] = {}
        failed: Grade | None = None
        for names, _, part in _parts(self.graders):
            count = len(part.judge_requests(question, answer, tool_calls))
            grade = part.grade(question, answer, replies[:count], tool_calls)
            replies = replies[count:]
            if grade.score is None:
                failed = failed or Grade(None, f"{names[0]}: {grade.detail}", grade.error)
            else:
                rewards |= dict.fromkeys(names, grade.score if grade.reward is None else grade.reward)
        parts = {names[0]: rewards[names[0]] for names, _, _ in _parts(self.graders) if names[0] in rewards}
        if failed:
            return msgspec.structs.replace(failed, parts=parts)
        try:
            reward = evaluate_formula(self.calculate_output, rewards)
        except FormulaError as error:
            return Grade(None, f"calculate_output {error}", "formula_parse_error", parts=parts)
        detail = "; ".join(f"{name} {part:.3g}" for name, part in parts.items())
        return Grade(min(1.0, max(0.0, reward)), detail, reward=reward, parts=parts)


def _parts(graders: Graders) -> list[tuple[list[str], str, Grader]]:
    """Return each grader with its names in the formula, of which there is one at least, and its path."""
    if isinstance(graders, dict):
        return [([name], f".graders.{name}", part) for name, part in graders.items()]
    parts = graders if isinstance(graders, list) else [graders]
    kinds = [part.type for part in parts]
    return [
        (
            [part.name, *([f"{part.type}_score"] if kinds.count(part.type) == 1 else [])],
            f".graders[{place}]" if isinstance(graders, list) else ".graders",
            part,
        )
        for place, part in enumerate(parts)
    ]
