"""Which adapters the database has vLLM serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.adapters.models import Adapter
from app.database import Database
from app.settings import Settings
from tests.conftest import BASE_MODEL
from tests.workers.inference.test_adapter_check import BASE, write_adapter
from workers.inference import lora_resolver
from workers.inference.adapter_check import AdapterError
from workers.inference.lora_resolver import PublishedAdapters

pytestmark = pytest.mark.usefixtures("job")


@pytest.fixture
def published(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishedAdapters]:
    monkeypatch.setattr(lora_resolver, "Settings", lambda: settings)
    monkeypatch.setattr(lora_resolver, "module_shapes", lambda _: BASE)
    published = PublishedAdapters(BASE_MODEL)
    yield published
    published._database.dispose()


@pytest.fixture
def job(database: Database) -> None:
    """A job for adapters to come from."""
    from tests.workers.inference.rows import add_job

    with database.writer() as session:
        add_job(session)


def publish(database: Database, settings: Settings, name: str, **columns: object) -> Path:
    with database.writer() as session:
        row = {"project_id": "proj_t", "job_id": "ftjob-t", "base_model": BASE_MODEL, "storage_key": "a"}
        session.add(Adapter(name=name, **row | columns))
    settings.storage_root.mkdir(exist_ok=True)
    return write_adapter(settings.storage_root / "a")


async def test_a_published_adapter(
    database: Database, settings: Settings, published: PublishedAdapters
) -> None:
    folder = publish(database, settings, "ft:mine")
    request = await published.resolve("ft:mine")
    assert request is not None
    assert (request.lora_name, request.lora_path) == ("ft:mine", str(folder))


def test_others_do_not_exist(database: Database, settings: Settings, published: PublishedAdapters) -> None:
    publish(database, settings, "ft:deleted", deleted_at=time.time())
    publish(database, settings, "ft:another-base", base_model="another-base")
    for name in ("ft:deleted", "ft:another-base", "ft:none", "../../etc"):
        assert published.folder_of(name) is None


def test_a_bad_one_is_refused_by_name(
    database: Database, settings: Settings, published: PublishedAdapters
) -> None:
    (publish(database, settings, "ft:bad") / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="The model ft:bad cannot be served"):
        published.folder_of("ft:bad")
