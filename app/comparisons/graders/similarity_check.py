"""OpenAI's `text_similarity` grader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from rapidfuzz import fuzz
from typing_extensions import override

from app.comparisons.graders.base import Grade
from app.comparisons.graders.ngrams import gleu, rouge_n
from app.comparisons.graders.template import Template, TemplateValues
from app.comparisons.graders.template_grader import TemplateGrader
from app.comparisons.graders.text_similarity import rouge_l, rouge_words

_MISSING = {
    "cosine": "needs an embedding model, which is not served here",
    "meteor": "needs WordNet, which is not part of the service",
}


def _is_there(metric: Any) -> Any:
    if isinstance(metric, str) and metric in _MISSING:
        raise PydanticCustomError(
            "evaluation_metric",
            "{metric} {reason}; use fuzzy_match, bleu, gleu, rouge_1 to rouge_5, or rouge_l",
            {"metric": metric, "reason": _MISSING[metric]},
        )
    return metric


Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]


class SimilarityCheck(TemplateGrader):
    """Gives the similarity of `input` and reference, from 0 to 1."""

    type: Literal["text_similarity"]
    input: Template
    reference: Template
    evaluation_metric: Annotated[Metric, BeforeValidator(_is_there)]

    @override
    def templates(self) -> list[str]:
        return [self.input, self.reference]

    @override
    def grade_values(self, values: TemplateValues, replies: Sequence[str | None]) -> Grade:
        return Grade(self._similarity(values.fill_in(self.input), values.fill_in(self.reference)))

    def _similarity(self, text: str, reference: str) -> float:
        match self.evaluation_metric:
            case "fuzzy_match":
                return fuzz.ratio(text, reference) / 100
            case "bleu":
                return _bleu(text, reference)
            case "gleu":
                return gleu(reference.split(), text.split())
            case "rouge_l":
                return rouge_l(reference, text)
            case metric:
                return rouge_n(rouge_words(reference), rouge_words(text), int(metric[-1]))


def _bleu(text: str, reference: str) -> float:
    # Imported where it is used, since it takes memory that few processes need to spend.
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415

    # The effective order is what sacreBLEU advises for single sentences.
    return min(1.0, BLEU(effective_order=True).sentence_score(text, [reference]).score / 100)
