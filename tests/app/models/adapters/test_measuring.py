"""Adapters that are older than their column for bytes are measured, and hold up nobody meanwhile."""

from __future__ import annotations

import pytest

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters import files
from app.models.adapters.models import Adapter
from app.storage import open_storage
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database


def test_measuring_takes_no_lock_and_goes_on_after_an_error(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(settings)
    with database.writer() as session:
        add_job(session)
        for name in ("broken", "sound"):
            session.add(Adapter(name=name, project_id="proj_t", base_model=BASE_MODEL, storage_key=name))

    def size(key: str) -> int:
        assert database.lock_is_free(0)
        if key == "broken":
            raise OSError("stale file handle")
        return 7

    monkeypatch.setattr(storage, "size", size)
    files.measure(database, storage)
    with database.reader() as session:
        assert {each.name: each.bytes for each in session.query(Adapter)} == {"broken": None, "sound": 7}
