"""The context of a request: on whose behalf a service acts, and with what."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.settings import Settings
from app.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Context:
    """A project with the deployment's settings and storage.

    Routers get one from `app.dependencies`; background work makes its own. It holds no session, so that a
    function's signature still says whether its work is short or long (see `app.core.database`).
    """

    project_id: str
    settings: Settings
    storage: Storage
    key_id: str | None = None
    """The API key that the request came with; None in background work."""
    models: frozenset[str] | None = None
    """The only models and aliases that the key may ask; None means all of the project."""

    def may_ask(self, model: str) -> bool:
        """Whether the key may ask a model, or an alias, by this name."""
        return self.models is None or model in self.models
