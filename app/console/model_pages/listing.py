"""The project's fine-tuned models and checkpoints, a page at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Text, cast, false, func, or_, select
from sqlalchemy.orm import Session

from app.core.pagination import fetch_page
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import IS_CHECKPOINT, Adapter
from app.models.aliases.models import Alias

Kind = Literal["models", "checkpoints"]


@dataclass(frozen=True, slots=True)
class ModelView:
    """A fine-tuned model or a checkpoint, with what it comes from and who points to it."""

    adapter: Adapter
    job: FineTuningJob | None
    checkpoints: int
    """How many its job has published beside it."""
    aliases: Sequence[Alias]

    @property
    def rank(self) -> int | None:
        """The LoRA rank that its job trained with; None for an import, whose files say it."""
        return None if self.job is None else self.job.hyperparameters.get("lora_rank")


def list_models(
    session: Session, project_id: str, kind: Kind, search: str, *, after: str | None, limit: int
) -> tuple[Sequence[ModelView], bool]:
    """Return a page of models or checkpoints by a part of their names, newest first, and whether more follow.

    Raises:
        InvalidRequestError: `after` is not in the list.
    """
    query = select(Adapter).where(
        Adapter.project_id == project_id,
        Adapter.deleted_at.is_(None),
        IS_CHECKPOINT if kind == "checkpoints" else ~IS_CHECKPOINT,
    )
    if search:
        query = query.where(Adapter.name.icontains(search, autoescape=True))
    key = (Adapter.created_at, Adapter.name)
    adapters, has_more = fetch_page(session, query, key, identity=Adapter.name, after=after, limit=limit)
    job_ids = {adapter.job_id for adapter in adapters if adapter.job_id is not None}
    jobs = {
        job.id: job for job in session.scalars(select(FineTuningJob).where(FineTuningJob.id.in_(job_ids)))
    }
    checkpoints = _count_checkpoints(session, job_ids)
    aliases = aliases_of(session, project_id, [adapter.name for adapter in adapters])
    return [
        ModelView(
            adapter,
            jobs.get(adapter.job_id or ""),
            checkpoints[adapter.job_id or ""],
            aliases.get(adapter.name, ()),
        )
        for adapter in adapters
    ], has_more


def aliases_of(session: Session, project_id: str, models: Collection[str]) -> Mapping[str, Sequence[Alias]]:
    """Return the project's aliases that point to each of the models, by the model's name."""
    names = set(models)
    named = [cast(Alias.split, Text).contains(name, autoescape=True) for name in names]
    query = select(Alias).where(
        Alias.project_id == project_id, Alias.deleted_at.is_(None), or_(false(), *named)
    )
    found: defaultdict[str, list[Alias]] = defaultdict(list)
    for alias in session.scalars(query.order_by(Alias.name)):
        for share in alias.split:
            if share["model"] in names:
                found[share["model"]].append(alias)
    return found


def _count_checkpoints(session: Session, job_ids: Collection[str]) -> Counter[str]:
    counts = (
        select(Adapter.job_id, func.count())
        .where(Adapter.job_id.in_(job_ids), Adapter.deleted_at.is_(None), IS_CHECKPOINT)
        .group_by(Adapter.job_id)
    )
    return Counter({str(job_id): count for job_id, count in session.execute(counts)})
