"""rate limits, what was used of them, and usage by key"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("api_key_id", sa.String(length=64), nullable=False),
        sa.Column("base_model", sa.String(length=64), nullable=False),
        sa.Column("max_requests_per_1_minute", sa.BigInteger(), nullable=True),
        sa.Column("max_tokens_per_1_minute", sa.BigInteger(), nullable=True),
        sa.Column("max_concurrent_requests", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "api_key_id", "base_model"),
    )
    # What they hold is over in a minute, and need not survive a crash: nothing waits for the disk.
    unlogged = ["UNLOGGED"] if op.get_context().dialect.name == "postgresql" else []
    op.create_table(
        "rate_windows",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("most", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        prefixes=unlogged,
    )
    op.create_index("ix_rate_windows_project_id", "rate_windows", ["project_id"])
    op.create_table(
        "requests_in_flight",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("gateway_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("alive_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "gateway_id"),
        prefixes=unlogged,
    )
    op.create_index("ix_requests_in_flight_project_id", "requests_in_flight", ["project_id"])
    op.create_table(
        "key_usage",
        sa.Column("api_key_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("api_key_id", "project_id", "minute", "model"),
    )


def downgrade() -> None:
    op.drop_table("key_usage")
    op.drop_table("requests_in_flight")
    op.drop_table("rate_windows")
    op.drop_table("rate_limits")
