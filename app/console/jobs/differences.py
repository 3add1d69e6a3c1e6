"""What differs between jobs: what they were told, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.console.jobs.fields import label_of
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import taken_by
from app.fine_tuning.models import FineTuningJob

if TYPE_CHECKING:
    from app.console.jobs.curves import Curves

_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of the table: what it is, and its value in each job."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """What differs, and how much does not."""

    settings: tuple[Difference, ...]
    results: tuple[Difference, ...]
    same: tuple[str, ...]
    """The names of the settings that are the same in all jobs."""


def compare(jobs: Sequence[FineTuningJob], curves: Sequence[Curves]) -> Compared:
    """Return what differs between the jobs."""
    rows = _rows([_settings(job) for job in jobs])
    results = _rows([_results(job, curve) for job, curve in zip(jobs, curves, strict=True)])
    return Compared(
        settings=tuple(row for row in rows if _differs(row)),
        results=tuple(row for row in results if _differs(row)),
        same=tuple(row.name for row in rows if not _differs(row)),
    )


def _rows(columns: Sequence[Mapping[str, str]]) -> list[Difference]:
    names = {name: None for column in columns for name in column}
    return [Difference(name, tuple(column.get(name, _ABSENT) for column in columns)) for name in names]


def _differs(row: Difference) -> bool:
    return len(set(row.values)) > 1


def _settings(job: FineTuningJob) -> dict[str, str]:
    hyperparameters = job.hyperparameters
    taken = {each.name: _shown(hyperparameters.get(each.name)) for each in taken_by(METHODS[job.method])}
    validation = job.validation_file
    return {
        "base model": job.model,
        "continues from": job.parent or _ABSENT,
        "method": job.method,
        "training file": f"{job.training_file.filename} ({job.training_file_id})",
        "training data (SHA-256)": job.training_file.sha256[:12],
        "validation data": _validation(job),
        "validation data (SHA-256)": validation.sha256[:12] if validation else _ABSENT,
        **{label_of(name): value for name, value in taken.items()},
        "seed": str(job.seed),
    }


def _validation(job: FineTuningJob) -> str:
    if split := job.validation_split:
        return f"{split['share']:.0%} of the training data, drawn by {split['seed']}"
    file = job.validation_file
    return f"{file.filename} ({file.id})" if file else _ABSENT


def _shown(value: Any) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _results(job: FineTuningJob, curves: Curves) -> dict[str, str]:
    results = {"status": job.status, "steps": f"{curves.last_step:,}"}
    if job.started_at and job.finished_at:
        results["minutes"] = f"{(job.finished_at - job.started_at) / 60:.1f}"
    if job.trained_tokens:
        results["trained tokens"] = f"{job.trained_tokens:,}"
    for name, label, is_loss in _ENDS:
        steps, values = curves.measured(name)
        if len(values):
            best = values.argmin() if is_loss else values.argmax()
            results[f"{label}, last"] = f"{values[-1]:.4g}"
            results[f"{label}, best"] = f"{values[best]:.4g} at step {int(steps[best]):,}"
    return results


_ENDS = (
    ("full_valid_loss", "validation loss", True),
    ("full_valid_mean_token_accuracy", "validation accuracy", False),
    ("full_valid_reward_accuracy", "validation reward accuracy", False),
    ("full_valid_reward_margin", "validation reward margin", False),
)
"""On all validation examples, as single batches are too noisy to compare jobs by."""
