"""Projects take turns in having their files checked.

Revision ID: 0024
Revises: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("file_checks", sa.Column("project_id", sa.String(64), nullable=True))
    op.add_column("file_checks", sa.Column("started_at", sa.Double(), nullable=True))
    op.add_column(
        "file_checks", sa.Column("is_large", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.create_index("ix_file_checks_project_started", "file_checks", ["project_id", "started_at"])
    op.execute(
        "UPDATE file_checks SET project_id ="
        " (SELECT project_id FROM files WHERE files.id = file_checks.file_id)"
    )


def downgrade() -> None:
    op.drop_index("ix_file_checks_project_started", "file_checks")
    op.drop_column("file_checks", "is_large")
    op.drop_column("file_checks", "started_at")
    op.drop_column("file_checks", "project_id")
