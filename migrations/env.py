"""Alembic's entry: the URL comes from the settings, or from whoever calls `app.migrations`."""

from alembic import context

from app import creations as _creations  # noqa: F401
from app.adapters import models as _adapters  # noqa: F401 - fills the metadata
from app.auth import models as _auth  # noqa: F401
from app.completions import models as _completions  # noqa: F401
from app.database import Base, Database
from app.files import models as _files  # noqa: F401
from app.fine_tuning import models as _fine_tuning  # noqa: F401
from app.settings import Settings

database = Database(context.config.get_main_option("sqlalchemy.url") or Settings().sqlalchemy_url)
try:
    # SQLite cannot alter most of a table in place; Alembic then copies it.
    with database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
finally:
    database.dispose()
