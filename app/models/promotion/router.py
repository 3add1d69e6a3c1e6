"""`POST /v1/aliases/{name}/promote`."""

from __future__ import annotations

from fastapi import APIRouter

from app.core.errors import ERROR_RESPONSES, ErrorResponse
from app.dependencies import ContextDep, IdempotentRequestDep, WriteSession
from app.models.aliases.schemas import AliasName
from app.models.promotion import service
from app.models.promotion.schemas import GateErrorResponse, PromoteModel, PromotionObject

router = APIRouter(prefix="/v1/aliases", tags=["Aliases"], responses=ERROR_RESPONSES)


@router.post(
    "/{name}/promote",
    responses={
        409: {
            "model": GateErrorResponse | ErrorResponse,
            "description": "`gate_refused`: a rule does not hold; other codes come without `rules`",
        }
    },
)
def promote_model(
    name: AliasName,
    body: PromoteModel,
    context: ContextDep,
    creating: IdempotentRequestDep,
    session: WriteSession,
) -> PromotionObject:
    """Points an alias to a model if a comparison says that the model deserves it."""
    return service.promote(session, context, creating, name, body)
