"""What a job was expected to take, which its own steps overwrite; and an index of messages among them.

Revision ID: 0050
Revises: 0049
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("fine_tuning_jobs", sa.Column("expected_seconds", sa.Double()))
    op.create_index(
        "ix_events_messages",
        "fine_tuning_events",
        ["job_id", "seq"],
        sqlite_where=sa.text("type = 'message'"),
        postgresql_where=sa.text("type = 'message'"),
    )


def downgrade() -> None:
    op.drop_index("ix_events_messages", "fine_tuning_events")
    op.drop_column("fine_tuning_jobs", "expected_seconds")
