"""preflight"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("fine_tuning_jobs") as batch_op:
        batch_op.add_column(sa.Column("rest_file_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("validation_split", sa.JSON(), nullable=True))
        batch_op.create_foreign_key("fk_jobs_rest_file", "files", ["rest_file_id"], ["id"])
    with op.batch_alter_table("workers") as batch_op:
        batch_op.add_column(
            sa.Column("device_memory_bytes", sa.BigInteger(), nullable=False, server_default="0")
        )
    op.create_table(
        "training_speeds",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("base_model", sa.String(length=255), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("worker_id", sa.String(length=64), nullable=False),
        sa.Column("measured_at", sa.Double(), nullable=False),
        sa.Column("lora_rank", sa.Integer(), nullable=False),
        sa.Column("value_bytes", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("startup_seconds", sa.Double(), nullable=False),
        sa.Column("training", sa.JSON(), nullable=False),
        sa.Column("looking", sa.JSON(), nullable=False),
        sa.Column("largest", sa.JSON(), nullable=False),
        sa.Column("resident_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["fine_tuning_jobs.id"]),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("ix_training_speeds_base_measured", "training_speeds", ["base_model", "measured_at"])


def downgrade() -> None:
    op.drop_table("training_speeds")
    with op.batch_alter_table("workers") as batch_op:
        batch_op.drop_column("device_memory_bytes")
    with op.batch_alter_table("fine_tuning_jobs") as batch_op:
        batch_op.drop_constraint("fk_jobs_rest_file", type_="foreignkey")
        batch_op.drop_column("validation_split")
        batch_op.drop_column("rest_file_id")
