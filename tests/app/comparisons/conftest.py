"""An engine for comparisons to ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.database import Database
from tests.app.comparisons.cook import Cook, knows_when_tuned
from tests.support.engine_stand_in import register_engine, run_engine


@pytest.fixture
def cook(database: Database) -> Iterator[Cook]:
    cook = Cook(knows_when_tuned)
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(cook, socket):
            register_engine(database, f"unix:{socket}")
            yield cook
