"""models that are checked"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.alter_column("job_id", existing_type=sa.VARCHAR(length=64), nullable=True)
        batch_op.add_column(sa.Column("quarantine_reason", sa.String(length=1024), nullable=True))
        batch_op.add_column(sa.Column("parity", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.drop_column("parity")
        batch_op.drop_column("quarantine_reason")
        batch_op.alter_column("job_id", existing_type=sa.VARCHAR(length=64), nullable=False)
