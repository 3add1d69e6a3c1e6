"""What runs on the nodes of a Ray cluster, which has to be the same on all of them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from app import __version__
from app.core.settings import Settings


class WrongVersionError(Exception):
    """This node has another version of Toque than the fleet."""


@dataclass(frozen=True, slots=True)
class Node:
    """What is installed and set on a node."""

    version: str
    has_database: bool
    """Whether `TOQUE_DATABASE_URL` names a database that several machines can share."""
    requires_token: bool
    """Whether Ray asks for a token, without which anybody who reaches the node could run anything on it."""

    def problem(self) -> str | None:
        """Returns what keeps a fleet of this version from using the node, and what to do."""
        if self.version != __version__:
            return f"has Toque {self.version}, and the fleet {__version__}: install the same version on both"
        if not self.has_database:
            return "does not know the database: start Ray with TOQUE_DATABASE_URL (PostgreSQL) set there"
        if not self.requires_token:
            return "asks for no token: start Ray with RAY_AUTH_MODE=token there"
        return None


def describe_this_node() -> dict[str, object]:
    """Returns the fields of `Node` for the node that this runs on."""
    return asdict(
        Node(
            version=__version__,
            has_database=Settings().database_url.startswith("postgresql"),
            requires_token=os.environ.get("RAY_AUTH_MODE") == "token",
        )
    )


def require_version(version: str) -> None:
    """Makes sure that this node has the fleet's version.

    Raises:
        WrongVersionError: it has another one.
    """
    if version != __version__:
        raise WrongVersionError(f"this node has Toque {__version__}, and the fleet {version}")
