"""The first page: what there is to do next, and what is going on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from fastapi import APIRouter, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.comparisons import service as comparisons_service
from app.comparisons.models import Comparison
from app.comparisons.report.documents import TITLES
from app.comparisons.results import ComparisonResults, Verdict
from app.console.events import topic
from app.console.navigation import Section
from app.console.page import Page, PageDep
from app.context import Context
from app.dependencies import ReadSession
from app.files import service as files_service
from app.fine_tuning import service as jobs_service
from app.fine_tuning.models import FineTuningJob
from app.models.aliases import service as aliases_service
from app.models.aliases.models import Alias

_MOST_JOBS = 5
_MOST_COMPARISONS = 3
_MOST_ALIASES = 10
_ACTIVE = ("running", "paused", "queued", "validating_files")
_SIGNS = {"fine_tuning_wins": "good", "fine_tuning_hurts": "bad"}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Step:
    """One of the steps from examples to a model that is used."""

    title: str
    text: str
    action: str
    href: str | None
    """Where it is done; None if there is no page for it, or the caller may not do it."""
    is_done: bool
    is_next: bool


@dataclass(frozen=True, slots=True)
class ComparisonSummary:
    """A comparison, in a sentence."""

    id: str
    name: str
    status: str
    done: int
    total: int
    created_at: float
    verdict: Verdict | None

    @property
    def title(self) -> str:
        """What the verdict is called."""
        return TITLES[self.verdict.code] if self.verdict else ""

    @property
    def sign(self) -> str:
        """How the verdict is shown."""
        return _SIGNS.get(self.verdict.code, "unsure") if self.verdict else ""


@dataclass(frozen=True, slots=True)
class Activity:
    """What a project is doing."""

    steps: Sequence[Step]
    """Empty if all have been done."""
    jobs: Sequence[FineTuningJob]
    comparisons: Sequence[ComparisonSummary]
    aliases: Sequence[Alias]
    is_new: bool
    """Whether the project has no examples yet."""
    is_blank: bool
    """Whether the caller may see nothing of all this."""


@router.get("/console")
def read_overview(page: PageDep, session: ReadSession) -> Response:
    """Show what there is to do next."""
    return _render(page, session, "overview/page.html.jinja")


@router.get("/console/overview")
def read_activity(page: PageDep, session: ReadSession) -> Response:
    """Show the part of the page that changes."""
    return _render(page, session, "overview/_activity.html.jinja")


def _render(page: Page, session: Session, template: str) -> Response:
    links = _links(page)
    return page.render(template, activity=_activity(page, session, links), links=links)


def _links(page: Page) -> dict[str, str | None]:
    """Return the addresses of the sections that there are and that the caller may see, by their last word."""
    sections = cast("Sequence[Section]", page.request.app.state.sections)
    found = {
        section.path.rpartition("/")[2]: section.path for section in sections if section.is_for(page.caller)
    }
    return dict.fromkeys(("datasets", "jobs", "playground", "comparisons", "models", "aliases")) | found


def _activity(page: Page, session: Session, links: dict[str, str | None]) -> Activity:
    if not page.may(Action.READ):
        return Activity([], [], [], [], is_new=False, is_blank=True)
    project_id = page.context.project_id
    files, _ = files_service.list_files(
        session, project_id, purpose="fine-tune", after=None, limit=1, order="desc"
    )
    comparisons, _ = comparisons_service.list_comparisons(
        session, project_id, after=None, limit=_MOST_COMPARISONS
    )
    aliases, _ = aliases_service.list_aliases(session, project_id, after=None, limit=_MOST_ALIASES)
    jobs = _jobs(session, project_id)
    done = [bool(files), bool(jobs), bool(comparisons), bool(aliases)]
    return Activity(
        [] if all(done) else _steps(page, done, links),
        jobs,
        [_summary(each) for each in comparisons],
        aliases,
        is_new=not files,
        is_blank=False,
    )


def _steps(page: Page, done: list[bool], links: dict[str, str | None]) -> list[Step]:
    texts = (
        (
            "Upload examples",
            "A file of conversations that show how the model should answer: at least ten; 50 to "
            "100 good ones show an effect. It is checked line by line before any training starts.",
            "Upload a file",
            links["datasets"],
            Action.TRAIN,
        ),
        (
            "Train",
            "Choose a file and a base model; a dry run says how long it takes and whether it fits.",
            "Create a job",
            links["jobs"] and f"{links['jobs']}/new",
            Action.TRAIN,
        ),
        (
            "Compare",
            "Is the new model better than a good prompt? Questions that it has not seen tell.",
            "Compare models",
            links["comparisons"] and f"{links['comparisons']}/new",
            Action.TRAIN,
        ),
        (
            "Promote",
            "Give the model a name for programs to use; the name moves to another model only when a "
            "comparison allows it.",
            "Promote a model",
            links["aliases"],
            Action.MANAGE,
        ),
    )
    following = done.index(False)
    return [
        Step(
            title,
            text,
            label,
            href if page.may(action) else None,
            is_done=done[number],
            is_next=number == following,
        )
        for number, (title, text, label, href, action) in enumerate(texts)
    ]


def _jobs(session: Session, project_id: str) -> list[FineTuningJob]:
    """Return jobs that have not ended, and after these the newest of the others."""
    active = session.scalars(
        select(FineTuningJob)
        .where(FineTuningJob.project_id == project_id, FineTuningJob.status.in_(_ACTIVE))
        # as an expression, so that the few are found by their status: by age, all jobs would be read
        .order_by(FineTuningJob.created_at + 0)
        .limit(_MOST_JOBS)
    ).all()
    newest, _ = jobs_service.list_jobs(session, project_id, metadata={}, after=None, limit=_MOST_JOBS)
    ended = [job for job in newest if job.status not in _ACTIVE]
    return [*active, *ended][:_MOST_JOBS]


def _summary(comparison: Comparison) -> ComparisonSummary:
    results = ComparisonResults.model_validate(comparison.results) if comparison.results else None
    return ComparisonSummary(
        comparison.id,
        comparison.name or comparison.id,
        comparison.status,
        comparison.done,
        comparison.total,
        comparison.created_at,
        results and results.verdict,
    )


def _fingerprint(session: Session, context: Context, _argument: str) -> str:
    jobs = select(
        FineTuningJob.id, FineTuningJob.status, FineTuningJob.estimated_finish, FineTuningJob.fine_tuned_model
    ).where(FineTuningJob.project_id == context.project_id)
    newest = session.execute(jobs.order_by(FineTuningJob.created_at.desc(), FineTuningJob.id.desc()).limit(9))
    comparisons = select(Comparison.id, Comparison.status, Comparison.done).where(
        Comparison.project_id == context.project_id
    )
    latest = session.execute(
        comparisons.order_by(Comparison.created_at.desc(), Comparison.id.desc()).limit(3)
    )
    aliases = select(func.count(), func.max(Alias.updated_at)).where(Alias.project_id == context.project_id)
    files, _ = files_service.list_files(
        session, context.project_id, purpose="fine-tune", after=None, limit=1, order="desc"
    )
    is_active = FineTuningJob.project_id == context.project_id, FineTuningJob.status.in_(_ACTIVE)
    active = session.execute(
        select(FineTuningJob.status, func.count()).where(*is_active).group_by(FineTuningJob.status)
    )
    parts = [*newest, *latest, *active, session.execute(aliases).one(), bool(files)]
    return repr([tuple(part) if not isinstance(part, bool) else part for part in parts])


topic("overview", _fingerprint)
