"""An index for engines, which look for newly published models of their base.

Revision ID: 0042
Revises: 0041
"""

from __future__ import annotations

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_adapters_base_created", "adapters", ["base_model", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_adapters_base_created", "adapters")
