"""The context of a request: on whose behalf a service acts, and with what."""

from __future__ import annotations

from dataclasses import dataclass

from app.auth.caller import Caller
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
    caller: Caller | None = None
    """Whose request it is; None in background work."""

    def may_ask(self, model: str) -> bool:
        """Whether the caller may ask a model, or an alias, by this name."""
        return self.caller is None or self.caller.may_ask(model)
