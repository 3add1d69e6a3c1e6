"""What engines report with their heartbeats: their load and their adapters.

Revision ID: 0040
Revises: 0039
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("engines", sa.Column("requests", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("engines", sa.Column("adapters", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("engines", "adapters")
    op.drop_column("engines", "requests")
