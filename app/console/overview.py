"""The first page: what there is to do next."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.console.page import PageDep

router = APIRouter(include_in_schema=False)


@router.get("/console")
def read_overview(page: PageDep) -> Response:
    """Show what the project is doing."""
    return page.render("overview/page.html.jinja")
