"""All graders, and how a request's document becomes one of them.

Graders are data, never a caller's code. A document is a JSON object with a `type`, or just the type's name
for the default settings:

    {"type": "all", "graders": ["exact_match", {"type": "regex", "pattern": "^\\["}]}

A document with a `name` is one of OpenAI's graders (`openai_grader`), which are graders like the others.

A grader is parsed once per request and checked once per file (`check_fits`). Then, for every answer, the
judges are asked (`judge_requests`; none unless a model grades) and the answer is graded (`grade`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from app.comparisons.graders.base import Grader, invalid_grader
from app.comparisons.graders.combinations import MAX_GRADERS, AllOf, AnyOf, Combination, Weighted
from app.comparisons.graders.contains import Contains
from app.comparisons.graders.exact_match import ExactMatch
from app.comparisons.graders.json_match import JsonMatch
from app.comparisons.graders.label_f1 import LabelF1
from app.comparisons.graders.model_grader import ModelGrader
from app.comparisons.graders.normalized_match import NormalizedMatch
from app.comparisons.graders.numeric import Numeric
from app.comparisons.graders.openai_grader import OpenAIGrader
from app.comparisons.graders.regex_match import RegexMatch
from app.comparisons.graders.text_similarity import TextSimilarity
from app.comparisons.graders.tool_calls import ToolCalls
from app.core.validation_errors import param_path, reason

MAX_DEPTH = 5
"""How deep combinations may be nested."""


def _with_type(document: Any) -> Any:
    return {"type": document} if isinstance(document, str) else document


# A new grader is a module of its own, and a line here.
AnyGrader = Annotated[
    ExactMatch
    | NormalizedMatch
    | Contains
    | RegexMatch
    | JsonMatch
    | LabelF1
    | TextSimilarity
    | Numeric
    | ToolCalls
    | ModelGrader
    | AllOf
    | AnyOf
    | Weighted,
    Field(discriminator="type"),
    BeforeValidator(_with_type),
]
for _combination in (Combination, AllOf, AnyOf, Weighted):
    _combination.model_rebuild(_types_namespace={"AnyGrader": AnyGrader})
GRADERS: Mapping[str, type[Grader]] = {
    grader.model_fields["type"].default: grader for grader in get_args(get_args(AnyGrader)[0])
}
"""The graders by the names that requests choose them by, without OpenAI's."""
_own: TypeAdapter[Grader] = TypeAdapter(AnyGrader)
_openai: TypeAdapter[Grader] = TypeAdapter(OpenAIGrader)


def parse_grader(document: Any, *, param: str = "grader") -> Grader:
    """Return the grader that a request describes.

    Raises:
        InvalidRequestError: the document describes none; the error's `param` is the path of the wrong field.
    """
    _check_size(document, param)
    try:
        return (_openai if _is_openai(document) else _own).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = param_path({**first, "loc": ("body", *first["loc"])}, document)
        place = f"{param}.{path}" if path else param
        raise invalid_grader(place, reason(first)) from None


def _is_openai(document: Any) -> bool:
    """Return whether this is a grader of OpenAI's, which all have a name, unlike ours."""
    fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    kinds = ("string_check", "text_similarity", "score_model", "label_model", "multi", "python")
    return "name" in fields and fields.get("type") in kinds


def label_grader(document: Any) -> LabelF1 | None:
    """Return the document's grader if it is `label_f1` itself, whose candidates get a macro F1."""
    kind = cast("dict[str, Any]", document).get("type") if isinstance(document, dict) else document
    grader = parse_grader(document) if kind == "label_f1" else None
    return grader if isinstance(grader, LabelF1) else None


def _check_size(document: Any, param: str) -> None:
    """Bound the nesting and the number of graders, before anything recurses into the document."""
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
        raise invalid_grader(param, f"combines graders more than {MAX_DEPTH} levels deep")
    if count > MAX_GRADERS:
        raise invalid_grader(param, f"has {count} graders; at most {MAX_GRADERS} may be combined")
