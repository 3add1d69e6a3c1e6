"""service accounts, and the roles of keys"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_KEYS = sa.table(
    "api_keys",
    sa.column("id", sa.String),
    sa.column("project_id", sa.String),
    sa.column("name", sa.String),
    sa.column("created_at", sa.Double),
    sa.column("service_account_id", sa.String),
    sa.column("role", sa.String),
    sa.column("expires_at", sa.Double),
    sa.column("revoked_at", sa.Double),
)
_PROJECTS = sa.table(
    "projects",
    sa.column("id", sa.String),
    sa.column("name", sa.String),
    sa.column("title", sa.String),
    sa.column("archived_at", sa.Double),
)


def upgrade() -> None:
    accounts = op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deleted_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_service_accounts_project_id", "service_accounts", ["project_id"])
    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.add_column(sa.Column("title", sa.String(length=128), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("archived_at", sa.Double(), nullable=True))
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("service_account_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("role", sa.String(length=16), nullable=False, server_default="project"))
        batch_op.add_column(sa.Column("models", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("expires_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("last_used_at", sa.Double(), nullable=True))

    # Every key that there is gets a service account of its own, which has the key's name.
    op.execute(_PROJECTS.update().values(title=_PROJECTS.c.name))
    account_id = "svc_acct_" + sa.func.replace(_KEYS.c.id, "key_", "")
    op.execute(
        accounts.insert().from_select(
            ["id", "project_id", "name", "created_at"],
            sa.select(account_id, _KEYS.c.project_id, _KEYS.c.name, _KEYS.c.created_at),
        )
    )
    op.execute(_KEYS.update().values(service_account_id=account_id))

    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.alter_column("title", server_default=None)
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.alter_column("role", server_default=None)
        batch_op.alter_column("service_account_id", existing_type=sa.String(length=64), nullable=False)
        batch_op.create_foreign_key(
            "api_keys_service_account_id_fkey", "service_accounts", ["service_account_id"], ["id"]
        )
        batch_op.create_index("ix_api_keys_service_account_id", ["service_account_id"])


def downgrade() -> None:
    # Before this revision, a key may do everything in its project, for ever: one that may not is revoked.
    is_narrower = sa.or_(
        _KEYS.c.role.not_in(("admin", "project")),
        _KEYS.c.expires_at.is_not(None),
    )
    now = time.time()
    op.execute(_KEYS.update().where(is_narrower, _KEYS.c.revoked_at.is_(None)).values(revoked_at=now))
    of_archived = _KEYS.c.project_id.in_(
        sa.select(_PROJECTS.c.id).where(_PROJECTS.c.archived_at.is_not(None))
    )
    op.execute(_KEYS.update().where(of_archived, _KEYS.c.revoked_at.is_(None)).values(revoked_at=now))
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.drop_index("ix_api_keys_service_account_id")
        batch_op.drop_constraint("api_keys_service_account_id_fkey", type_="foreignkey")
        for name in ("last_used_at", "expires_at", "models", "role", "service_account_id"):
            batch_op.drop_column(name)
    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.drop_column("archived_at")
        batch_op.drop_column("title")
    op.drop_table("service_accounts")
