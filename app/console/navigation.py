"""The sections of the console: what a page of the first level is called, where it is, and who may see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter

from app.auth.caller import Caller
from app.auth.roles import ALLOWED, Action


@dataclass(frozen=True, slots=True)
class Section:
    """Pages under one path, with the actions that its routes do (`app.auth.roles`)."""

    title: str
    path: str
    icon: str
    """The name of a drawing in `components.html.jinja`."""
    router: APIRouter
    reads: Action
    """What its GET routes do."""
    changes: Action
    """What its other routes do at least; a route that does more says so by `Page.check`."""

    def is_for(self, caller: Caller) -> bool:
        """Whether the caller may see it."""
        return caller.role in ALLOWED[self.reads]

    def holds(self, path: str) -> bool:
        """Whether a path is one of its pages."""
        return path == self.path or (self.path != "/console" and path.startswith(f"{self.path}/"))


def section_of(sections: Sequence[Section], path: str) -> Section | None:
    """Return the section that a path belongs to."""
    return next((section for section in sections if section.holds(path)), None)
