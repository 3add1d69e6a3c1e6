"""Rules on promotions: an alias moves to a model that a comparison of the project has proven."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.auth.models import ApiKey
from app.comparisons import service as comparisons_service
from app.comparisons.results import ComparisonResults
from app.core.errors import ConflictError, NotFoundError
from app.core.idempotency import CreationRequest
from app.core.settings import Settings
from app.models.aliases import service as aliases_service
from app.models.aliases.models import Alias, AliasChange, Share
from app.models.aliases.schemas import ShareObject
from app.models.promotion import gate
from app.models.promotion.schemas import GateRefusedError, PromoteModel, PromotionObject, RuleResult


def promote(
    session: Session,
    settings: Settings,
    creating: CreationRequest,
    key: ApiKey,
    name: str,
    request: PromoteModel,
) -> PromotionObject:
    """Points the alias to the model if every rule holds; in a dry run, only says what the rules come to.

    Raises:
        InvalidRequestError: the comparison lacks the model or what a rule needs, or the name is a model's.
        NotFoundError: the project has no such model or comparison.
        FailedDependencyError: the model is quarantined.
        ConflictError: the comparison has not succeeded, or the alias is not at the version to be replaced.
        GateRefusedError: a rule does not hold.
    """
    content = [name, request.model_dump()]
    known = None if request.dry_run else creating.find(session, "alias.promotion", content)
    if known is not None:
        return _promoted(session.get_one(AliasChange, known), name, request)
    model = aliases_service.find_model(session, settings, key.project_id, request.model, param="model")
    results = _results(session, key.project_id, request.comparison)
    alias = _alias(session, settings, key.project_id, name, request)
    split = alias.split if alias is not None else []
    current = {share["model"] for share in split} - {model}
    rules = gate.evaluate(request.rules, results, gate.find_candidate(results, model), current)
    passed = all(rule.passed for rule in rules)
    if request.dry_run:
        version = alias.version if alias is not None and split else None
        return _promotion(name, model, request, rules, passed=passed, version=version, split=split)
    if not passed:
        raise GateRefusedError(gate.refusal(rules), rules)
    change = aliases_service.point(
        session,
        key,
        name,
        alias,
        [{"model": model, "weight": 1.0}],
        kind="promoted",
        reason=request.reason,
        comparison_id=request.comparison,
        rules=[rule.model_dump() for rule in rules],
    )
    creating.remember(session, "alias.promotion", content, change.id)
    return _promoted(change, name, request)


def _alias(
    session: Session, settings: Settings, project_id: str, name: str, request: PromoteModel
) -> Alias | None:
    """The alias as the rules are to see it: held at its version, unless nothing is to be moved."""
    if request.dry_run and request.version is None:
        return aliases_service.find_alias(session, settings, project_id, name)
    return aliases_service.lock_alias(session, settings, project_id, name, request.version)


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


def _promoted(change: AliasChange, name: str, request: PromoteModel) -> PromotionObject:
    rules = [RuleResult.model_validate(rule) for rule in change.rules or ()]
    [share] = change.split_after
    return _promotion(
        name, share["model"], request, rules, passed=True, version=change.version, split=change.split_after
    )


def _promotion(
    name: str,
    model: str,
    request: PromoteModel,
    rules: list[RuleResult],
    *,
    passed: bool,
    version: int | None,
    split: list[Share],
) -> PromotionObject:
    return PromotionObject(
        alias=name,
        model=model,
        comparison=request.comparison,
        passed=passed,
        promoted=passed and not request.dry_run,
        dry_run=request.dry_run,
        version=version,
        split=[ShareObject(**share) for share in split],
        rules=rules,
    )
