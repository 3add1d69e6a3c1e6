"""`/v1/fine_tuning/alpha/graders`."""

from __future__ import annotations

from functools import partial
from typing import cast

from fastapi import APIRouter, Request

from app.completions.gateway import Gateway
from app.core.errors import ERROR_RESPONSES
from app.dependencies import ContextDep
from app.graders import service
from app.graders.schemas import GraderRun, RunGrader, ValidatedGrader, ValidateGrader

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["Graders"], responses=ERROR_RESPONSES)


@router.post("/validate", response_model_exclude_unset=True, response_model_exclude_none=True)
async def validate_grader(body: ValidateGrader, context: ContextDep) -> ValidatedGrader:
    """Checks a grader of OpenAI's kinds, and returns it as it was sent."""
    del context  # only a caller with a key may ask
    return ValidatedGrader(grader=body.grader)


@router.post("/run")
async def run_grader(body: RunGrader, context: ContextDep, http: Request) -> GraderRun:
    """Grades one answer; graders that ask a model ask one that is served here."""
    gateway = cast("Gateway", http.app.state.gateway)
    return await service.run_grader(partial(gateway.ask, context.project_id), body)
