"""quotas of projects, what attempts took, and how long data is kept"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("max_gpu_hours", sa.Double(), nullable=True))
    op.add_column("projects", sa.Column("retention_days", sa.JSON(), nullable=True))
    op.add_column("adapters", sa.Column("bytes", sa.BigInteger(), nullable=True))
    op.create_table(
        "fine_tuning_attempts",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["fine_tuning_jobs.id"]),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("job_id", "epoch"),
    )
    op.create_index("ix_attempts_project_ended", "fine_tuning_attempts", ["project_id", "ended_at"])


def downgrade() -> None:
    op.drop_table("fine_tuning_attempts")
    op.drop_column("adapters", "bytes")
    for name in ("retention_days", "max_gpu_hours", "max_stored_bytes"):
        op.drop_column("projects", name)
