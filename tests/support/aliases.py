"""Aliases over HTTP, and the models that they point to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from app.auth.models import Project
from app.core.database import Database
from app.models.adapters.models import Adapter
from tests.support.service import BASE_MODEL

NAME = "house-style:production"
ADDRESS = f"/v1/aliases/{NAME}"


def add_model(database: Database, suffix: str, project: str = "default", **columns: Any) -> str:
    """An adapter's row; returns its served name."""
    name = f"ft:{BASE_MODEL}:{project}:{suffix}:1"
    with database.writer() as session:
        owner = session.query(Project).filter_by(name=project).one()
        row = {"name": name, "project_id": owner.id, "base_model": BASE_MODEL, "storage_key": "none"}
        session.add(Adapter(**row | columns))
    return name


def put(http: httpx2.Client, name: str = NAME, **body: Any) -> dict[str, Any]:
    response = http.put(f"/v1/aliases/{name}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@contextmanager
def refused(status: int, code: str, param: str | None) -> Iterator[Any]:
    """The block calls what it gets with a response that must be refused so."""

    def check(response: httpx2.Response) -> dict[str, Any]:
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param), response.text
        assert (response.headers.get("x-should-retry") == "false") == (status in (409, 424))
        return error

    yield check
