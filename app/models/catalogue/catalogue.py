"""The catalogue: which base models jobs and requests may name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Text, cast, func, inspect, make_url, select
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.core.database import Database, advisory_lock
from app.core.errors import NotFoundError
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue.models import BaseModelRow

_LOCK = "catalogue"


class Catalogue:
    """The base models of the settings, then those that were added to the database, oldest first.

    It is as the database was when it was read. Whoever needs it reads it anew for each request, claim or
    start, so that a base model that is added can be used at once.
    """

    def __init__(self, settings: Settings, added: Iterable[BaseModelEntry] = ()) -> None:
        given = {entry.name for entry in settings.base_models}
        self.entries = [*settings.base_models, *(entry for entry in added if entry.name not in given)]
        self._engine_base = settings.engine_base_model

    @classmethod
    def read(cls, session: Session, settings: Settings) -> Catalogue:
        """Return the catalogue as it is now."""
        query = select(cast(BaseModelRow.entry, Text)).order_by(BaseModelRow.added_at, BaseModelRow.name)
        return cls(settings, map(_validated, session.scalars(query)))

    @classmethod
    def read_for(cls, session: Session, settings: Settings, name: str) -> Catalogue:
        """Return as much of the catalogue as finding that name needs: the database is not read for a name
        that the settings have.
        """
        given = cls(settings)
        return cls.read(session, settings) if given.find(name) is None else given

    @classmethod
    def read_to_change(cls, session: Session, settings: Settings) -> Catalogue:
        """Return the catalogue, which nobody else changes or relies on before the transaction ends."""
        advisory_lock(session, _LOCK)
        return cls.read(session, settings)

    @classmethod
    def read_to_rely_on(cls, session: Session, settings: Settings) -> Catalogue:
        """Return the catalogue, which nobody changes before the transaction ends."""
        cls.rely_on(session)
        return cls.read(session, settings)

    @staticmethod
    def rely_on(session: Session) -> None:
        """Let nobody change the catalogue before the transaction ends."""
        advisory_lock(session, _LOCK, shared=True)

    @classmethod
    def load(cls, settings: Settings) -> Catalogue:
        """Return the catalogue, for a process that has no connection to the database.

        Where the database does not exist yet, or is older than this table, nothing can have been added.

        Raises:
            SQLAlchemyError: the database cannot be read.
        """
        url = make_url(settings.sqlalchemy_url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return cls(settings)
        database = Database(settings.sqlalchemy_url)
        try:
            if not inspect(database.engine).has_table(BaseModelRow.__tablename__):
                return cls(settings)
            with database.reader() as session:
                return cls.read(session, settings)
        finally:
            database.dispose()

    def find(self, name: str) -> BaseModelEntry | None:
        """Return the base model with that name or alternative name, or None if there is none."""
        return next((entry for entry in self.entries if name in (entry.name, *entry.also_known_as)), None)

    def get(self, name: str, *, param: str = "model") -> BaseModelEntry:
        """Return the base model with that name or alternative name.

        Raises:
            NotFoundError: there is none; the message lists those that there are.
        """
        entry = self.find(name)
        if entry is None:
            raise NotFoundError(
                f"The model '{name[:255]}' does not exist. Base models here: {self.names}.",
                code="model_not_found",
                param=param,
            )
        return entry

    @property
    def names(self) -> str:
        """The names of all base models, for a message."""
        return ", ".join(entry.name for entry in self.entries) or "none"

    @property
    def engine_base(self) -> BaseModelEntry:
        """The base model that this machine's engine serves by default.

        Raises:
            ValueError: the catalogue is empty or has no such model.
        """
        name = self._engine_base or (self.entries[0].name if self.entries else "")
        entry = self.find(name)
        if entry is None:
            raise ValueError(f"The catalogue of base models has no '{name}'; it has: {self.names}")
        return entry


def added_at(session: Session) -> Mapping[str, float]:
    """Return since when the catalogue has each base model; for those of the settings, which do not say, that
    is when the deployment's first project was made.
    """
    began = session.scalar(select(func.min(Project.created_at))) or 0.0
    added = session.execute(select(BaseModelRow.name, BaseModelRow.added_at))
    return defaultdict(lambda: began, {name: at for name, at in added})  # noqa: C416 - a Row is no pair


@lru_cache(maxsize=256)
def _validated(row: str) -> BaseModelEntry:
    """Return the entry that a row holds as JSON; validating it anew for each request would be slow."""
    return BaseModelEntry.model_validate_json(row)
