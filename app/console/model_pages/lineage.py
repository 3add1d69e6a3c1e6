"""Where a model comes from and who uses it, stage by stage: data, job, checkpoints, model, aliases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.model_pages.listing import aliases_of
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import CHECKPOINT, IS_CHECKPOINT, Adapter
from app.models.aliases.models import Alias

_MOST_CHECKPOINTS = 6
_MOST_SUCCESSORS = 6


@dataclass(frozen=True, slots=True)
class Node:
    """One thing of the picture."""

    kind: str
    name: str
    href: str | None = None
    """None for what is gone."""
    note: str | None = None
    status: str | None = None
    """A status of a badge (`components.html.jinja`)."""
    word: str | None = None
    """What the badge says, if it is not the status's own word."""
    is_this: bool = False
    """Whether it is what the page is about."""
    is_served_name: bool = False
    before: Sequence[Node] = ()
    """What it comes from itself, the nearest first."""


@dataclass(slots=True)
class Stage:
    """What stands side by side in the picture, and leads to all of the next stage."""

    title: str
    nodes: list[Node] = field(default_factory=list[Node])
    more: str | None = None
    """Says that there are others, which are not shown."""
    more_href: str | None = None


def model_path(name: str) -> str:
    """Return the path of a model's page."""
    return f"/console/models/{quote(name, safe=':')}"


def alias_path(name: str) -> str:
    """Return the path of an alias's page."""
    return f"/console/aliases/{quote(name, safe=':')}"


def find_lineage(session: Session, adapter: Adapter) -> list[Stage]:
    """Return the stages of the picture; those that have nothing in them are left out."""
    job = None if adapter.job_id is None else session.get(FineTuningJob, adapter.job_id)
    checkpoints, model = _published(session, adapter)
    shown = [*checkpoints, *([model] if model else [])]
    stages = [
        Stage("Begins with", [_origin(session, adapter), *(_data(job) if job else ())]),
        Stage("Training", [_job(job) if job else _IMPORT]),
        _checkpoint_stage(checkpoints, adapter),
        Stage("Model", [_adapter("Fine-tuned model", model, adapter)] if model else []),
        Stage("Used by", [*_aliases(session, shown, adapter), *_successors(session, shown, adapter)]),
    ]
    return [stage for stage in stages if stage.nodes]


_IMPORT = Node("Import", "Trained elsewhere", note="imported as PEFT's files")


def _origin(session: Session, adapter: Adapter) -> Node:
    """Return what training began with: the base model, or a model that stands for all that it comes from."""
    base, *ancestors = adapters_service.lineage(session, adapter)[:-1]
    there = set(
        session.scalars(select(Adapter.name).where(Adapter.name.in_(ancestors), Adapter.deleted_at.is_(None)))
    )
    bottom = Node("Base model", base, model_path(base))
    line = [
        Node(
            "Continued from" if place == 0 else "which continued from",
            name,
            model_path(name) if name in there else None,
            note=None if name in there else "deleted",
            is_served_name=True,
        )
        for place, name in enumerate(reversed(ancestors))
    ]
    if not line:
        return bottom
    nearest, *others = line
    return Node(
        nearest.kind,
        nearest.name,
        nearest.href,
        nearest.note,
        is_served_name=True,
        before=[*others, bottom],
    )


def _data(job: FineTuningJob) -> Iterator[Node]:
    split = job.validation_split
    learnt = split["examples"] if split else job.training_file.examples
    yield _file("Training data", job.training_file, learnt)
    if job.validation_file is not None:
        yield _file("Validation data", job.validation_file, job.validation_file.examples)
    elif split:
        yield _file("Held out of the training data", job.training_file, split["held_out"])


def _file(kind: str, file: File, examples: int | None) -> Node:
    counted = "" if examples is None else f"{examples:,} examples"
    if file.deleted_at is not None:
        return Node(kind, file.filename, note=f"{counted}, deleted".removeprefix(", "))
    return Node(kind, file.filename, f"/console/datasets/{file.id}", counted or None)


def _job(job: FineTuningJob) -> Node:
    rank = job.hyperparameters.get("lora_rank")
    note = job.method.upper() if job.method == "dpo" else job.method
    return Node(
        "Fine-tuning job",
        job.suffix or job.id,
        f"/console/jobs/{job.id}",
        f"{note}, rank {rank}" if rank else note,
        status=job.status,
    )


def _published(session: Session, adapter: Adapter) -> tuple[list[Adapter], Adapter | None]:
    """Return the newest checkpoints of the adapter's job, this one among them, and the job's model."""
    if adapter.job_id is None:
        return [], adapter
    of_job = select(Adapter).where(Adapter.job_id == adapter.job_id, Adapter.deleted_at.is_(None))
    newest = of_job.where(IS_CHECKPOINT).order_by(Adapter.created_at.desc(), Adapter.name.desc())
    checkpoints = list(session.scalars(newest.limit(_MOST_CHECKPOINTS + 1)))
    model = session.scalar(of_job.where(~IS_CHECKPOINT))
    if adapter not in checkpoints and adapter is not model:
        checkpoints.append(adapter)
    return checkpoints, model


def _checkpoint_stage(checkpoints: Sequence[Adapter], this: Adapter) -> Stage:
    shown = [*checkpoints[:_MOST_CHECKPOINTS]]
    stage = Stage("Checkpoints")
    if len(checkpoints) > _MOST_CHECKPOINTS:
        stage.more, stage.more_href = "All checkpoints of the job", f"/console/jobs/{this.job_id}"
        if this in checkpoints and this not in shown:
            shown[-1] = this
    stage.nodes = [_adapter("Checkpoint", each, this) for each in reversed(shown)]
    return stage


def _adapter(kind: str, adapter: Adapter, this: Adapter) -> Node:
    is_broken, step = adapter.quarantine_reason is not None, _step(adapter.name)
    return Node(
        kind,
        f"Step {step}" if step else adapter.name,
        model_path(adapter.name),
        status="failed" if is_broken else None,
        word="quarantined" if is_broken else None,
        is_this=adapter.name == this.name,
        is_served_name=not step,
    )


def _aliases(session: Session, shown: Sequence[Adapter], this: Adapter) -> Iterator[Node]:
    names = [adapter.name for adapter in shown]
    for model, aliases in sorted(aliases_of(session, this.project_id, names).items()):
        for alias in aliases:
            note = f"{share_of(alias, model) * 100:.3g} % of its traffic"
            if model != this.name:
                note += f", by {_short(model)}"
            yield Node("Alias", alias.name, alias_path(alias.name), note)


def share_of(alias: Alias, model: str) -> float:
    """Return the part of an alias's traffic that a model gets, as configured."""
    whole = sum(share["weight"] for share in alias.split)
    return sum(share["weight"] for share in alias.split if share["model"] == model) / whole


def _successors(session: Session, shown: Sequence[Adapter], this: Adapter) -> Iterator[Node]:
    names: Collection[str] = [adapter.name for adapter in shown]
    continued = (
        select(Adapter)
        .where(
            Adapter.project_id == this.project_id,
            Adapter.parent.in_(names),
            Adapter.deleted_at.is_(None),
            ~IS_CHECKPOINT,
        )
        .order_by(Adapter.created_at.desc())
        .limit(_MOST_SUCCESSORS)
    )
    for adapter in session.scalars(continued):
        yield Node("Continued as", adapter.name, model_path(adapter.name), is_served_name=True)


def _short(name: str) -> str:
    step = _step(name)
    return f"step {step}" if step else "the model"


def _step(name: str) -> str:
    """Return the step in a checkpoint's served name; empty for a model's."""
    return name.partition(CHECKPOINT)[2]
