"""How many engines each base model needs, read from the database in the background."""

from __future__ import annotations

import logging
import time
from functools import cache
from threading import Thread

from sqlalchemy.exc import SQLAlchemyError

from app.completions import service as completions_service
from app.core.database import Database
from app.core.settings import Settings

log = logging.getLogger("toque.fleet")

_POLL_SECONDS = 1.0


class EngineDemand:
    """What gateways have recorded, at most a few seconds old; as last known while the database is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.sqlalchemy_url)
        self._engines: dict[str, int] | None = None
        Thread(target=self._follow, daemon=True).start()

    def engines(self, base_model: str) -> int | None:
        """Returns how many engines the base model needs; None as long as the database was never read."""
        return None if self._engines is None else self._engines.get(base_model, 0)

    def _follow(self) -> None:
        while True:
            try:
                with self._database.reader() as session:
                    self._engines = completions_service.engines_needed(session, self._settings)
            except SQLAlchemyError as error:
                log.warning("the database is away, so the engines stay as they are: %s", type(error).__name__)
            time.sleep(_POLL_SECONDS)


@cache
def engine_demand() -> EngineDemand:
    """Returns the demand that all policies of this process share."""
    return EngineDemand(Settings())
