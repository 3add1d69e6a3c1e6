"""What the check of a large file has found so far.

Revision ID: 0049
Revises: 0048
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("file_checks", sa.Column("progress", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("file_checks", "progress")
