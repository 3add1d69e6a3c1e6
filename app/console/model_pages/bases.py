"""The base models of the catalogue, as the console shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.completions.engine_reports import EngineReport, list_engines
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import Catalogue, is_prepared, obtainable_names


@dataclass(frozen=True, slots=True)
class BaseModelView:
    """A base model: whether its files are there, and who serves it."""

    entry: BaseModelEntry
    is_here: bool
    """Whether its files are on this machine."""
    is_obtainable: bool
    """Whether they are here or in the bucket."""
    engines: Sequence[EngineReport]

    @property
    def is_served(self) -> bool:
        """Whether an engine can answer now, as far as is known."""
        return any(engine.status in ("ready", "given") for engine in self.engines)


def list_bases(
    session: Session, settings: Settings, names: Sequence[str] | None = None
) -> list[BaseModelView]:
    """Return the base models of the catalogue, or those of these names, in its order."""
    obtainable = set(obtainable_names(session, settings))
    engines = [report for report, _ in list_engines(session, settings)]
    return [
        BaseModelView(
            entry,
            is_prepared(settings, entry),
            entry.name in obtainable,
            [engine for engine in engines if engine.base_model == entry.name],
        )
        for entry in Catalogue.read(session, settings).entries
        if names is None or entry.name in names
    ]
