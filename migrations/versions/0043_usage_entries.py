"""Entries of usage, which gateways append; gateways of earlier versions still write the sums.

Revision ID: 0043
Revises: 0042
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

_SUMS = ("requests", "input_tokens", "output_tokens")
_KEYS = {
    "usage": ("project_id", "minute", "model"),
    "key_usage": ("project_id", "minute", "model", "api_key_id"),
    "alias_usage": ("project_id", "minute", "model", "alias"),
}


def upgrade() -> None:
    op.create_table(
        "usage_entries",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(128), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_usage_entries_minute", "usage_entries", ["minute", "project_id"])
    op.create_table(
        "usage_batches",
        sa.Column("gateway_id", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("written_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("gateway_id"),
    )


def downgrade() -> None:
    for table, names in _KEYS.items():
        key = ", ".join(names)
        sums = ", ".join(f"sum({name})" for name in _SUMS)
        added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _SUMS)
        op.execute(
            f"INSERT INTO {table} ({key}, {', '.join(_SUMS)}) "  # noqa: S608 - names of our own
            f"SELECT {key}, {sums} FROM usage_entries WHERE {names[-1]} IS NOT NULL GROUP BY {key} "
            f"ON CONFLICT ({key}) DO UPDATE SET {added}"
        )
    op.drop_table("usage_batches")
    op.drop_table("usage_entries")
