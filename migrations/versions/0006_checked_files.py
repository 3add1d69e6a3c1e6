"""Files that are checked in the background.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("status", sa.String(16), nullable=False, server_default="processed"))
    op.add_column("files", sa.Column("status_details", sa.Text(), nullable=True))
    op.create_table(
        "file_checks",
        sa.Column("file_id", sa.String(64), sa.ForeignKey("files.id"), primary_key=True),
        sa.Column("epoch", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
    )
    op.create_index("ix_file_checks_finished", "file_checks", ["finished_at"])
    # Files that were checked as they came stay usable, and get a report too.
    op.execute(
        "INSERT INTO file_checks (file_id) SELECT id FROM files "
        "WHERE purpose = 'fine-tune' AND deleted_at IS NULL"
    )


def downgrade() -> None:
    op.drop_index("ix_file_checks_finished", "file_checks")
    op.drop_table("file_checks")
    op.drop_column("files", "status_details")
    op.drop_column("files", "status")
