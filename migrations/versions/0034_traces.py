"""The trace that a job was created in.

Revision ID: 0034
Revises: 0033
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("fine_tuning_jobs", sa.Column("traceparent", sa.String(55)))


def downgrade() -> None:
    op.drop_column("fine_tuning_jobs", "traceparent")
