"""Reads the catalogue of base models for a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.output import stderr
from app.core.settings import Settings

if TYPE_CHECKING:
    from app.models.catalogue import Catalogue


def read_catalogue(settings: Settings) -> Catalogue:
    """Returns the catalogue; if the database cannot be read, with the base models of the settings only."""
    from sqlalchemy.exc import DatabaseError  # noqa: PLC0415 - SQLAlchemy is slow to import

    from app.models.catalogue import Catalogue  # noqa: PLC0415 - as above

    try:
        return Catalogue.load(settings)
    except DatabaseError as error:
        stderr.print(
            f"Warning: the database cannot be read ({error.orig}); only TOQUE_BASE_MODELS are known.",
            style="yellow",
        )
        return Catalogue(settings)
