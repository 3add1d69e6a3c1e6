"""Administration of the first project."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.auth.models import Project
from app.core.database import Database


@pytest.fixture
def project_id(database: Database) -> str:
    """The first project's id."""
    with database.reader() as session:
        return session.scalars(select(Project.id).where(Project.name == "default")).one()
