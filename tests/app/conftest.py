"""An engine for the API to ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.database import Database
from tests.support.engine_stand_in import EngineStandIn, register_engine, run_engine


@pytest.fixture
def engine(database: Database) -> Iterator[EngineStandIn]:
    stand_in = EngineStandIn()
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(stand_in, socket):
            register_engine(database, f"unix:{socket}")
            yield stand_in
