"""The graders of OpenAI's API, as one type."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from app.comparisons.graders.label_model import LabelModel
from app.comparisons.graders.multi import Multi
from app.comparisons.graders.score_model import ScoreModel
from app.comparisons.graders.similarity_check import SimilarityCheck
from app.comparisons.graders.string_check import StringCheck
from app.comparisons.graders.template_grader import refuse_python

OpenAIGrader = Annotated[
    StringCheck | SimilarityCheck | ScoreModel | LabelModel | Multi,
    Field(discriminator="type"),
    BeforeValidator(refuse_python),
]
"""https://developers.openai.com/api/docs/api-reference/graders"""
