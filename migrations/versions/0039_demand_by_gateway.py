"""What each gateway is asked of a base model, and the requests that it has in flight.

Revision ID: 0039
Revises: 0038
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.rename_table("engine_demands", "old_engine_demands")
    op.create_table(
        "engine_demands",
        sa.Column("base_model", sa.String(64), nullable=False),
        sa.Column("gateway_id", sa.String(64), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("base_model", "gateway_id", name="pk_engine_demands"),
    )
    op.execute(
        "INSERT INTO engine_demands (base_model, gateway_id, asked_at) "
        "SELECT base_model, 'gateway_', asked_at FROM old_engine_demands"
    )
    op.drop_table("old_engine_demands")


def downgrade() -> None:
    op.rename_table("engine_demands", "new_engine_demands")
    op.create_table(
        "engine_demands",
        sa.Column("base_model", sa.String(64), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("base_model", name="engine_demands_base_model"),
    )
    op.execute(
        "INSERT INTO engine_demands (base_model, asked_at) "
        "SELECT base_model, max(asked_at) FROM new_engine_demands GROUP BY base_model"
    )
    op.drop_table("new_engine_demands")
