"""Alembic's entry: the URL comes from the settings, or from whoever calls `app.core.migrations`."""

from alembic import context

from app.audit import models as _audit  # noqa: F401
from app.auth import models as _auth  # noqa: F401
from app.batches import models as _batches  # noqa: F401
from app.comparisons import models as _comparisons  # noqa: F401
from app.completions import models as _completions  # noqa: F401
from app.core import idempotency as _creations  # noqa: F401
from app.core.database import Base, Database
from app.core.settings import Settings
from app.files import models as _files  # noqa: F401
from app.fine_tuning import models as _fine_tuning  # noqa: F401
from app.limits import models as _limits  # noqa: F401
from app.models.adapters import models as _adapters  # noqa: F401 - fills the metadata
from app.models.aliases import models as _aliases  # noqa: F401
from app.models.catalogue import models as _catalogue  # noqa: F401
from app.responses import models as _responses  # noqa: F401
from app.uploads import models as _uploads  # noqa: F401
from app.usage import models as _usage  # noqa: F401
from app.webhooks import models as _webhooks  # noqa: F401


def check_references(ctx, **_):
    """Inside the migration's transaction: one that leaves rows that refer to nothing is undone."""
    if broken := ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        raise RuntimeError(f"the migration leaves rows that refer to nothing: {broken}")


database = Database(context.config.get_main_option("sqlalchemy.url") or Settings().sqlalchemy_url)
try:
    # A transaction of SQLite that reads the version first could not write once another process has written.
    with database.engine.execution_options(sqlite_begin_immediate=True).connect() as connection:
        # SQLite cannot alter most of a table in place; Alembic then copies it and drops the old one, which
        # rows that refer to it would forbid. The switch works outside of a transaction only.
        is_sqlite = connection.dialect.name == "sqlite"
        if is_sqlite:
            connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=is_sqlite,
            compare_type=True,
            on_version_apply=check_references if is_sqlite else None,
        )
        with context.begin_transaction():
            context.run_migrations()
finally:
    database.dispose()
