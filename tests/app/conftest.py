"""An engine for the API to ask, and a clock for its caches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import stale_while_revalidate
from app.core.database import Database
from tests.support.cache_clock import CacheClock
from tests.support.engine_stand_in import EngineStandIn, register_engine, run_engine


@pytest.fixture
def engine(database: Database) -> Iterator[EngineStandIn]:
    stand_in = EngineStandIn()
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(stand_in, socket):
            register_engine(database, f"unix:{socket}")
            yield stand_in


@pytest.fixture
def cache_clock(monkeypatch: pytest.MonkeyPatch) -> CacheClock:
    """The clock of the caches of every service in this process."""
    clock = CacheClock()
    monkeypatch.setattr(stale_while_revalidate, "time", clock)
    return clock
