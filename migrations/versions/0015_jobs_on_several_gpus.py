"""jobs on several GPUs"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("fine_tuning_jobs", "workers"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("gpus", sa.Integer(), server_default="1", nullable=False))


def downgrade() -> None:
    for table in ("workers", "fine_tuning_jobs"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("gpus")
