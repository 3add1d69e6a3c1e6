"""Queued jobs are found by base model and project in the order in which they are claimed.

Without that order in the index, PostgreSQL sorted all of a project's jobs for every claim where it expected
few, because most projects have none.

Revision ID: 0044
Revises: 0043
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

_QUEUED = sa.text("status = 'queued'")


def upgrade() -> None:
    _replace_index(["model", "project_id", "rank", "created_at", "id"])


def downgrade() -> None:
    _replace_index(["model", "project_id"])


def _replace_index(columns: list[str]) -> None:
    name, table = "ix_jobs_queued_models", "fine_tuning_jobs"
    op.drop_index(name, table)
    op.create_index(name, table, columns, sqlite_where=_QUEUED, postgresql_where=_QUEUED)
