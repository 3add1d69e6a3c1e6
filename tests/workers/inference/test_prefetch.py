"""Models are on the engine's machine before they are first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from obstore.store import MemoryStore

from app.core.database import Database
from app.models.adapters.models import Adapter
from app.storage.cache import Cache
from app.storage.objects import ObjectStorage
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from workers.inference.prefetch import Prefetch

pytestmark = pytest.mark.one_database


@pytest.fixture
def storage(tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(cast(Any, MemoryStore()), Cache(tmp_path / "cache", 2**20))


@pytest.fixture
def prefetch(database: Database, storage: ObjectStorage) -> Iterator[Prefetch]:
    prefetch = Prefetch(database, storage, BASE_MODEL, every=0.02)
    prefetch.start()
    yield prefetch
    prefetch.stop()
    prefetch.join()


def publish(database: Database, storage: ObjectStorage, name: str, **columns: object) -> None:
    key = f"adapters/{name}"
    with storage.incoming_folder() as folder:
        folder.file("adapter_config.json").write(b"{}")
        storage.publish_folder(folder.complete(), key)
    row = {"project_id": "proj_t", "job_id": "ftjob-t", "base_model": BASE_MODEL, "storage_key": key}
    with database.writer() as session:
        session.add(Adapter(name=name, **row | columns))


@pytest.mark.usefixtures("prefetch")
def test_new_models_of_the_base_are_fetched(
    database: Database, storage: ObjectStorage, tmp_path: Path
) -> None:
    with database.writer() as session:
        add_job(session)
    publish(database, storage, "of-another-base", base_model="another")
    publish(database, storage, "damaged-before", quarantine_reason="it is damaged")
    publish(database, storage, "not-in-the-bucket", storage_key="adapters/nowhere")
    publish(database, storage, "new")
    copies = tmp_path / "cache/copies"

    def fetched() -> list[str]:
        return [path.name for path in copies.iterdir()] if copies.exists() else []

    wait_until(fetched, "the new model is fetched")
    publish(database, storage, "newer")
    wait_until(lambda: len(fetched()) == 2, "the newer model is fetched")
    assert sorted(fetched()) == ["adapters%2Fnew", "adapters%2Fnewer"]
