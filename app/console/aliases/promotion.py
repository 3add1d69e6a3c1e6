"""`/console/aliases/~promote`: whether a comparison allows an alias to move, rule by rule, and the move.

The decision has an address of its own, with all that was asked: it can be looked at again, or sent to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Query, Response
from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.comparisons.models import Comparison
from app.comparisons.results import ComparisonResults
from app.console.aliases.promotion_form import OPPONENTS, PromotionForm
from app.console.aliases.rules import RuleView, rule_views
from app.console.model_pages.lineage import alias_path
from app.console.model_pages.listing import list_models
from app.console.page import Page, PageDep
from app.core.database import Database
from app.core.errors import ToqueError
from app.core.idempotency import IdempotentRequest
from app.dependencies import DatabaseDep, IdempotentRequestDep
from app.models.aliases import service as aliases_service
from app.models.promotion import service as promotion_service
from app.models.promotion.schemas import PromotionObject

router = APIRouter(include_in_schema=False)

PATH = "/console/aliases/~promote"
"""No alias has this name."""
_SUGGESTED = 50


@router.get(PATH)
def read_promotion(
    page: PageDep,
    database: DatabaseDep,
    creating: IdempotentRequestDep,
    form: Annotated[PromotionForm, Query()],
) -> Response:
    """Show the form, and what its rules come to once it is filled in; nothing is moved."""
    page.check(Action.MANAGE)
    return _render(page, database, creating, form)


@router.post(PATH)
def promote(
    page: PageDep,
    database: DatabaseDep,
    creating: IdempotentRequestDep,
    form: Annotated[PromotionForm, Form()],
) -> Response:
    """Move the alias if every rule holds."""
    page.check(Action.MANAGE)
    try:
        with database.writer() as session:
            request = form.request(dry_run=False)
            promotion_service.promote(session, page.context, creating, form.alias, request)
    except ToqueError as error:
        return _render(page, database, creating, form, error)
    return page.redirect(alias_path(form.alias))


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the rules come to, and which problem is in the way of that."""

    promotion: PromotionObject | None = None
    error: ToqueError | None = None

    @property
    def rules(self) -> Sequence[RuleView]:
        """The rules with their results."""
        return rule_views(self.promotion.rules) if self.promotion else ()


def _render(
    page: Page,
    database: Database,
    creating: IdempotentRequest,
    form: PromotionForm,
    error: ToqueError | None = None,
) -> Response:
    project_id = page.context.project_id
    with database.reader() as session:
        results = _results(session, page, form.comparison)
        models, _ = list_models(session, project_id, "models", "", after=None, limit=_SUGGESTED)
        aliases, _ = aliases_service.list_aliases(session, project_id, after=None, limit=_SUGGESTED)
        comparisons = _comparisons(session, project_id, form)
    form = form.with_rules_for(results)
    decision = _decide(database, page, creating, form) if form.check else _Decision()
    problem = error or decision.error
    return page.render(
        "aliases/promote.html.jinja",
        status=200 if problem is None else problem.status,
        form=form,
        opponents=OPPONENTS,
        decision=decision,
        error=problem.body if problem else None,
        comparisons=comparisons,
        models=_candidates(results) if results else [view.adapter.name for view in models],
        aliases=[alias.name for alias in aliases],
    )


def _decide(database: Database, page: Page, creating: IdempotentRequest, form: PromotionForm) -> _Decision:
    try:
        request = form.request(dry_run=True)
        with database.writer() as session:  # it locks what it looks at, as the promotion itself does
            return _Decision(promotion_service.promote(session, page.context, creating, form.alias, request))
    except ToqueError as error:
        return _Decision(error=error)


def _results(session: Session, page: Page, comparison_id: str) -> ComparisonResults | None:
    """Return what a comparison found; None if there is no such comparison, or it has found nothing yet."""
    query = select(Comparison.results).where(
        Comparison.id == comparison_id, Comparison.project_id == page.context.project_id
    )
    results = session.scalar(query)
    return None if results is None else ComparisonResults.model_validate(results)


def _candidates(results: ComparisonResults) -> list[str]:
    models = [each.model for each in results.candidates if each.type in ("model", "base")]
    return list(dict.fromkeys(models))


@dataclass(frozen=True, slots=True)
class _Option:
    """A comparison to choose."""

    id: str
    name: str | None
    created_at: float
    total: int


def _comparisons(session: Session, project_id: str, form: PromotionForm) -> list[_Option]:
    """Return the newest that have succeeded, of the model if one is named, and the one that is chosen."""
    columns = (Comparison.id, Comparison.name, Comparison.created_at, Comparison.total)
    of_project = select(*columns).where(Comparison.project_id == project_id, Comparison.status == "succeeded")
    query = of_project
    if form.model:
        query = query.where(cast(Comparison.plan, Text).contains(form.model, autoescape=True))
    newest = query.order_by(Comparison.created_at.desc(), Comparison.id.desc()).limit(_SUGGESTED)
    options = [_Option(*row) for row in session.execute(newest)]
    if form.comparison and all(option.id != form.comparison for option in options):
        chosen = session.execute(of_project.where(Comparison.id == form.comparison)).first()
        options = [_Option(*chosen), *options] if chosen else options
    return options
