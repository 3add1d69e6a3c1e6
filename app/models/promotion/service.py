"""Promotions: an alias moves to a model that a comparison of the project has proven."""

from __future__ import annotations

from functools import partial

from sqlalchemy.orm import Session

from app.comparisons import service as comparisons_service
from app.comparisons.results import ComparisonResults
from app.context import Context
from app.core.errors import ConflictError, NotFoundError
from app.core.idempotency import IdempotentRequest
from app.models.aliases import service as aliases_service
from app.models.aliases.models import Alias, AliasChange
from app.models.aliases.resolution import find_model
from app.models.aliases.schemas import ShareObject
from app.models.aliases.service import Move
from app.models.promotion import gate
from app.models.promotion.schemas import GateRefusedError, PromoteModel, PromotionObject, RuleResult


def promote(
    session: Session, context: Context, creating: IdempotentRequest, name: str, request: PromoteModel
) -> PromotionObject:
    """Point the alias to the model if every rule holds; in a dry run, only say what the rules come to.

    Raises:
        InvalidRequestError: the comparison lacks the model or what a rule needs, or the name is a model's.
        NotFoundError: the project has no such model or comparison.
        FailedDependencyError: the model is quarantined.
        ConflictError: the comparison has not succeeded, or the alias is not at the version to be replaced.
        GateRefusedError: a rule does not hold.
    """
    if request.dry_run:
        return _decide(session, context, name, request)[1]

    def move() -> AliasChange:
        alias, decision = _decide(session, context, name, request)
        if not decision.passed:
            raise GateRefusedError(gate.refusal(decision.rules), decision.rules)
        return aliases_service.point(
            session,
            context,
            name,
            alias,
            Move(
                "promoted",
                [{"model": decision.model, "weight": 1.0}],
                reason=request.reason,
                comparison_id=request.comparison,
                rules=[rule.model_dump() for rule in decision.rules],
            ),
        )

    find = partial(session.get_one, AliasChange)
    change = creating.once(session, "alias.promotion", [name, request.model_dump()], find=find, create=move)
    [share] = change.split_after
    return PromotionObject(
        alias=name,
        model=share["model"],
        comparison=request.comparison,
        passed=True,
        promoted=True,
        dry_run=False,
        version=change.version,
        split=[ShareObject(**share)],
        rules=[RuleResult.model_validate(rule) for rule in change.rules or ()],
    )


def _decide(
    session: Session, context: Context, name: str, request: PromoteModel
) -> tuple[Alias | None, PromotionObject]:
    """Return the alias as the rules see it, and what they come to while it is not moved."""
    model = find_model(session, context.settings, context.project_id, request.model, param="model")
    results = _results(session, context.project_id, request.comparison)
    if request.dry_run and request.version is None:
        alias = aliases_service.find_alias(session, context, name)
    else:
        alias = aliases_service.lock_alias(session, context, name, request.version)
    split = alias.split if alias is not None else []
    current = {share["model"] for share in split} - {model}
    rules = gate.evaluate(request.rules, results, gate.find_candidate(results, model), current)
    return alias, PromotionObject(
        alias=name,
        model=model,
        comparison=request.comparison,
        passed=all(rule.passed for rule in rules),
        promoted=False,
        dry_run=request.dry_run,
        version=alias.version if alias is not None and split else None,
        split=[ShareObject(**share) for share in split],
        rules=rules,
    )


def _results(session: Session, project_id: str, comparison_id: str) -> ComparisonResults:
    try:
        comparison = comparisons_service.get_comparison(session, project_id, comparison_id)
    except NotFoundError as error:
        error.body.param = "comparison"
        raise
    if comparison.status != "succeeded":
        raise ConflictError(
            f"The comparison is {comparison.status}; one that has succeeded is needed.",
            code=f"comparison_{comparison.status}",
            param="comparison",
        )
    return ComparisonResults.model_validate(comparison.results)
