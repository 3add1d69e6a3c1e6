"""For how long a key was meant to be valid, which a rotation does not change.

Revision ID: 0035
Revises: 0034
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("lifetime_seconds", sa.Double()))
    op.execute("UPDATE api_keys SET lifetime_seconds = expires_at - created_at WHERE expires_at IS NOT NULL")


def downgrade() -> None:
    op.drop_column("api_keys", "lifetime_seconds")
