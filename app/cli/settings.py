"""Reads the settings for a command."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.cli.output import fail
from app.core.settings import Settings


def read_settings() -> Settings:
    """Returns the settings; an invalid one ends the command with a line that names it."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "__".join(str(part) for part in first["loc"]).upper()
        fail(f"TOQUE_{name} is not valid: {first['msg']}", 2)
    except SettingsError as error:
        fail(f"a TOQUE_* variable is not valid JSON: {error}", 2)
