"""How far the attempts at a job have got, so that only those without progress count.

Revision ID: 0038
Revises: 0035
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("workers_lost", "deaths", "saved_epoch"):
        op.add_column("fine_tuning_jobs", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("fine_tuning_jobs", sa.Column("saved_step", sa.Integer()))


def downgrade() -> None:
    for name in ("saved_step", "saved_epoch", "deaths", "workers_lost"):
        op.drop_column("fine_tuning_jobs", name)
