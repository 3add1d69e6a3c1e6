"""Queued jobs are found by base model, and PostgreSQL notifies workers of them; the payload is that model.

Revision ID: 0041
Revises: 0040
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    queued = sa.text("status = 'queued'")
    op.create_index(
        "ix_jobs_queued_models",
        "fine_tuning_jobs",
        ["model", "project_id"],
        sqlite_where=queued,
        postgresql_where=queued,
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION toque_notify_queued() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('toque_jobs_queued', NEW.model); RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER toque_notify_queued AFTER INSERT OR UPDATE OF status ON fine_tuning_jobs "
        "FOR EACH ROW WHEN (NEW.status = 'queued') EXECUTE FUNCTION toque_notify_queued()"
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_queued_models", "fine_tuning_jobs")
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("DROP TRIGGER toque_notify_queued ON fine_tuning_jobs")
    op.execute("DROP FUNCTION toque_notify_queued()")
