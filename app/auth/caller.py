"""The caller of a request: what its API key stands for."""

from __future__ import annotations

from dataclasses import dataclass

from app.auth.roles import ALLOWED, Action, Role
from app.core.errors import PermissionDeniedError


@dataclass(frozen=True, slots=True)
class Caller:
    """An API key, as far as requests need to know it."""

    project_id: str
    key_id: str
    role: Role
    models: frozenset[str] | None = None
    """The only models and aliases that it may ask; None means all of the project."""
    expires_at: float | None = None

    def check_action(self, action: Action) -> None:
        """Make sure that the key's role allows an action.

        Raises:
            PermissionDeniedError: it does not.
        """
        allowed = ALLOWED[action]
        if self.role in allowed:
            return
        needed = " or ".join(f"'{role}'" for role in reversed(allowed))
        raise PermissionDeniedError(
            f"This needs a key with the role {needed}; this key has the role '{self.role}'.",
            code="insufficient_permissions",
        )

    def may_ask(self, name: str) -> bool:
        """Whether the key may ask a model, or an alias, by this name."""
        return self.models is None or name in self.models

    def check_model(self, name: str) -> None:
        """Make sure that the key may ask a model, or an alias, by this name.

        Raises:
            PermissionDeniedError: it may not, whether there is such a model or not.
        """
        if not self.may_ask(name):
            raise PermissionDeniedError(
                f"This API key does not have access to the model '{name[:255]}'.",
                code="model_not_found",
                param="model",
            )
