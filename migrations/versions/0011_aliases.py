"""aliases"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("split", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("deleted_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_aliases_project_name", "aliases", ["project_id", "name"], unique=True)
    op.create_table(
        "alias_changes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("alias_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=512), nullable=True),
        sa.Column("comparison_id", sa.String(length=64), nullable=True),
        sa.Column("rules", sa.JSON(), nullable=True),
        sa.Column("split_before", sa.JSON(), nullable=False),
        sa.Column("split_after", sa.JSON(), nullable=False),
        sa.Column("restored_version", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["alias_id"], ["aliases.id"]),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_alias_changes_version", "alias_changes", ["alias_id", "version"], unique=True)


def downgrade() -> None:
    op.drop_table("alias_changes")
    op.drop_table("aliases")
