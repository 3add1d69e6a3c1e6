"""engines that run while they are needed"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "engine_demands",
        sa.Column("base_model", sa.String(length=64), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("base_model"),
    )


def downgrade() -> None:
    op.drop_table("engine_demands")
