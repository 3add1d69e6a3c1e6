"""The metrics of a job's steps as columns of numbers, read from its log once and then only what is new.

A step is a row of the log with its metrics as JSON, and reading 100,000 of them takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import msgspec
import numpy as np
from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from app.console.jobs.downsampling import Numbers
from app.core.database import Database
from app.fine_tuning.methods.metrics import Metrics
from app.fine_tuning.models import Event

_ROWS_AT_ONCE = 5000
"""Few enough that other requests of the process get their turn in between."""


class _Step(Metrics, frozen=True, kw_only=True):
    """What a step's row says, as far as it is drawn."""

    total_steps: int | None = None
    learning_rate: float | None = None
    trained_tokens: float | None = None
    elapsed_seconds: float | None = None


_NAMES = tuple(field.name for field in msgspec.structs.fields(_Step))
_STEPS = msgspec.json.Decoder(list[_Step])


@dataclass(frozen=True)
class Curves:
    """What was measured at each of a job's steps, in the order of the steps."""

    columns: Mapping[str, Numbers] = field(default_factory=lambda: {"step": np.empty(0)})
    """By metric, one number a step, NaN where it was not measured; a metric that no step has is not there."""
    last_seq: int = 0
    """The last row of the log that was read."""

    @property
    def steps(self) -> Numbers:
        """The numbers of the recorded steps, ascending."""
        return self.columns["step"]

    @property
    def last_step(self) -> int:
        """The last recorded step; 0 if there is none."""
        return int(self.steps[-1]) if len(self.steps) else 0

    @property
    def total_steps(self) -> int | None:
        """The number of steps that the job has; None until the first is recorded."""
        _, totals = self.measured("total_steps")
        return int(totals[-1]) if len(totals) else None

    @property
    def size(self) -> int:
        """The number of numbers."""
        return len(self.columns) * len(self.steps)

    def measured(self, name: str) -> tuple[Numbers, Numbers]:
        """Return the steps at which a metric was measured, and its values."""
        if name not in self.columns:
            return np.empty(0), np.empty(0)
        values = self.columns[name]
        is_there = np.isfinite(values)
        return self.steps[is_there], values[is_there]

    def speed(self, window: int) -> tuple[Numbers, Numbers]:
        """Return steps, and the tokens a second over the steps up to each, at most `window` of them.

        A job that resumes counts the time of its earlier steps anew, so what spans that is left out.
        """
        steps, tokens = self.measured("trained_tokens")
        _, seconds = self.measured("elapsed_seconds")
        if len(steps) < 2 or len(seconds) != len(tokens):
            return np.empty(0), np.empty(0)
        since = np.maximum(np.arange(1, len(steps)) - window, 0)
        took, trained = seconds[1:] - seconds[since], tokens[1:] - tokens[since]
        restarts = np.concatenate(([0], np.cumsum(np.diff(seconds) <= 0)))
        is_sound = (took > 0) & (trained > 0) & (restarts[1:] == restarts[since])
        return steps[1:][is_sound], trained[is_sound] / took[is_sound]

    def read_on(self, database: Database, job_id: str) -> Curves:
        """Return these curves with what the job's log has after them."""
        parts, last_seq = [self.columns], self.last_seq
        more = True
        while more:
            with database.reader() as session:
                rows = _rows_after(session, job_id, last_seq)
            if rows.number:
                parts.append(_columns(_STEPS.decode(f"[{rows.steps}]")))
                last_seq = rows.last_seq
            more = rows.number == _ROWS_AT_ONCE
        return Curves(_joined(parts), last_seq) if len(parts) > 1 else self


class _Rows(NamedTuple):
    """Rows of the log."""

    number: int
    last_seq: int
    steps: str
    """What they have as JSON, with commas between; far faster to fetch than row by row."""


def _rows_after(session: Session, job_id: str, seq: int) -> _Rows:
    rows = (
        select(Event.seq, cast(Event.data, Text).label("step"))
        .where(Event.job_id == job_id, Event.type == "metrics", Event.seq > seq)
        .order_by(Event.seq)
        .limit(_ROWS_AT_ONCE)
        .subquery()
    )
    joined = func.aggregate_strings(rows.c.step, ",")
    return _Rows(*session.execute(select(func.count(), func.max(rows.c.seq), joined)).one())


def _columns(steps: list[_Step]) -> dict[str, Numbers]:
    # No database promises to join them in their order, and it costs nothing.
    steps.sort(key=attrgetter("step"))
    columns: dict[str, Numbers] = {}
    for name in _NAMES:
        values = [getattr(step, name) for step in steps]
        if any(value is not None for value in values):
            columns[name] = np.array(values, dtype=np.float64)
    return columns


def _joined(parts: Sequence[Mapping[str, Numbers]]) -> dict[str, Numbers]:
    names = {name: None for part in parts for name in part}  # in the order in which they first appeared
    missing = [np.full(len(part["step"]), np.nan) for part in parts]
    return {
        name: np.concatenate([part.get(name, gap) for part, gap in zip(parts, missing, strict=True)])
        for name in names
    }
