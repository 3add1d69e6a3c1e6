"""Which role may do what: the one table that decides it.

A route's action follows from the first part of its path below /v1, and from whether it only reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Literal, get_args

Role = Literal["admin", "project", "train", "inference", "read"]
ROLES: tuple[Role, ...] = get_args(Role)
"""From the one that may do most."""


class Action(Enum):
    """What a request does."""

    ADMINISTER = "administer"
    """Create projects and keys, and see the usage of all projects."""
    MANAGE = "manage"
    """Change what others rely on: aliases move, models go, webhooks are sent elsewhere."""
    TRAIN = "train"
    """Change files, jobs, comparisons and batches, and import adapters."""
    ASK = "ask"
    """Have a model answer."""
    READ = "read"
    """See what the project has: files with their content, jobs, usage."""
    READ_MODELS = "read models"
    """See which models there are, and stored responses."""


ALLOWED: Mapping[Action, tuple[Role, ...]] = {
    Action.ADMINISTER: ("admin",),
    Action.MANAGE: ("admin", "project"),
    Action.TRAIN: ("admin", "project", "train"),
    Action.ASK: ("admin", "project", "train", "inference"),
    Action.READ: ("admin", "project", "train", "read"),
    Action.READ_MODELS: ("admin", "project", "train", "inference", "read"),
}
"""The roles that may do it, from the one that may do most."""

_RULES: Mapping[str, tuple[Action, Action]] = {
    "adapters": (Action.READ, Action.TRAIN),
    "aliases": (Action.READ, Action.MANAGE),
    "batches": (Action.READ, Action.TRAIN),
    "chat": (Action.READ, Action.ASK),
    "comparisons": (Action.READ, Action.TRAIN),
    "completions": (Action.READ, Action.ASK),
    "files": (Action.READ, Action.TRAIN),
    "fine_tuning": (Action.READ, Action.TRAIN),
    "models": (Action.READ_MODELS, Action.MANAGE),
    "organization": (Action.ADMINISTER, Action.ADMINISTER),
    "responses": (Action.READ_MODELS, Action.ASK),
    "uploads": (Action.READ, Action.TRAIN),
    "usage": (Action.READ, Action.MANAGE),
    "webhook_endpoints": (Action.READ, Action.MANAGE),
    "webhook_event_types": (Action.READ, Action.MANAGE),
    "webhooks": (Action.READ, Action.MANAGE),
}
"""By the first part of the path: what GET does, and what any other method does."""


def action_of(method: str, path: str) -> Action:
    """Return what a route under /v1 does, by its method and its path.

    Raises:
        LookupError: no rule covers the route; it needs one in this module.
    """
    _, version, resource, *_ = [*path.split("/"), ""]
    rule = _RULES.get(resource) if version == "v1" else None
    if rule is None:
        raise LookupError(f"{method} {path} has no rule in app/auth/roles.py: which roles may use it?")
    reading, writing = rule
    return reading if method in ("GET", "HEAD") else writing
