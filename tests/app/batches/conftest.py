"""An engine for batches to ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.database import Database
from tests.app.comparisons.stub_engine import StubEngine, number_asked, reference
from tests.support.engine_stand_in import register_engine, run_engine


@pytest.fixture
def engine(database: Database) -> Iterator[StubEngine]:
    engine = StubEngine(lambda body: reference(number_asked(body)))
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            register_engine(database, f"unix:{socket}")
            yield engine
