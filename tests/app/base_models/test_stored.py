"""Base models in the bucket, one that is in memory: `make test-s3` has a real one and real processes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any, cast

import obstore
import pytest
from obstore.store import MemoryStore

from app.api import main
from app.base_models.files import unready
from app.base_models.service import add_base_model, remove_base_model
from app.base_models.stored import StoredBases
from app.core.database import Database
from app.core.errors import ConflictError
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import obtainable_names, prepared_names
from app.orphans import find_orphans, sweep_orphans
from app.storage.base import DamagedContentError
from app.storage.cache import Cache
from app.storage.objects import ObjectStorage
from tests.support.prepared_model import write_model
from tests.support.service import run_service
from tests.support.waiting import wait_until

BASE = BaseModelEntry(name="small", source="owner/small")
pytestmark = pytest.mark.one_database


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def storage(bucket: MemoryStore, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(cast(Any, bucket), Cache(tmp_path / "cache", 2**20))


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A machine without base models."""
    changes = {"storage_url": "s3://bucket", "models_dir": tmp_path / "fresh", "base_models": [BASE]}
    return settings.model_copy(update=changes)


@pytest.fixture
def prepared(settings: Settings, tmp_path: Path) -> Settings:
    """A machine that has the base model."""
    write_model(tmp_path / "prepared" / BASE.name)
    return settings.model_copy(update={"models_dir": tmp_path / "prepared"})


def publish(
    machine: Settings, database: Database, storage: ObjectStorage, entry: BaseModelEntry = BASE
) -> str:
    bases = StoredBases(machine, database, storage)
    stored = bases.upload(entry, lambda _: None)
    with database.writer() as session:
        bases.record(session, stored)
    return stored.storage_key


def fetch(machine: Settings, database: Database, storage: ObjectStorage) -> bool:
    return StoredBases(machine, database, storage).fetch(BASE, threading.Event())


def test_a_machine_has_what_another_one_has_published(
    settings: Settings, prepared: Settings, database: Database, storage: ObjectStorage
) -> None:
    assert not fetch(settings, database, storage)
    key = publish(prepared, database, storage)
    assert publish(prepared, database, storage) == key, "once more changes nothing"
    with database.reader() as session:
        assert prepared_names(session, settings) == []
        assert obtainable_names(session, settings) == [BASE.name]
        assert find_orphans(session, storage, 0).missing == find_orphans(session, storage, 0).unnamed == []
    assert fetch(settings, database, storage)
    target = settings.models_root / BASE.name
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name != ".source"} == {
        path.name: path.read_bytes() for path in (prepared.models_root / BASE.name).iterdir()
    }
    assert (target / ".source").read_text() == BASE.source
    assert [path.name for path in settings.models_root.iterdir()] == [BASE.name]


def test_the_api_fetches_what_its_catalogue_has(
    settings: Settings,
    prepared: Settings,
    database: Database,
    storage: ObjectStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "open_storage", lambda _: storage)
    publish(prepared, database, storage)
    with run_service(settings) as service, service.http() as http:
        wait_until(lambda: unready(settings.models_root / BASE.name) is None, "the API has fetched it")
        assert http.get("/v1/models").json()["data"][0]["id"] == BASE.name


def test_one_that_cannot_be_fetched_is_in_no_others_way(
    settings: Settings,
    prepared: Settings,
    database: Database,
    storage: ObjectStorage,
    bucket: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "open_storage", lambda _: storage)
    damaged = BaseModelEntry(name="damaged", source="owner/damaged")
    write_model(prepared.models_root / damaged.name)
    key = publish(prepared, database, storage, damaged)
    obstore.put(bucket, f"{key}/config.json", b"{}")
    publish(prepared, database, storage)
    machine = settings.model_copy(update={"base_models": [damaged, BASE]})
    with run_service(machine):
        wait_until(lambda: unready(settings.models_root / BASE.name) is None, "the API has fetched it")
    assert not (settings.models_root / damaged.name).exists()


def test_a_machine_without_room_fetches_nothing(
    settings: Settings,
    prepared: Settings,
    database: Database,
    storage: ObjectStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = publish(prepared, database, storage)
    size = sum(path.stat().st_size for path in (prepared.models_root / BASE.name).iterdir())
    usage = shutil.disk_usage(settings.data_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(OSError, match=r"no room for 0\.0 MB of a base model"):
        fetch(settings, database, storage)
    digest = key.rpartition("/")[2]
    assert list((settings.models_root / f".{BASE.name}.partial" / digest).iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
    assert fetch(settings, database, storage)


def test_what_an_earlier_base_model_of_the_name_has_left_is_not_used(
    settings: Settings, prepared: Settings, database: Database, storage: ObjectStorage
) -> None:
    publish(prepared, database, storage)
    assert fetch(settings, database, storage)
    other = BASE.model_copy(update={"source": "owner/other"})
    with pytest.raises(OSError, match=r"is from owner/small, and small is to be from owner/other"):
        StoredBases(settings, database, storage).fetch(other, threading.Event())


def test_a_name_stands_for_the_same_files_until_it_is_removed(
    settings: Settings, prepared: Settings, database: Database, storage: ObjectStorage
) -> None:
    key = publish(prepared, database, storage)
    (prepared.models_root / BASE.name / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ConflictError, match="The storage has other files as 'small'"):
        publish(prepared, database, storage)
    assert sweep_orphans(database, storage, 0) == []
    added = settings.model_copy(update={"base_models": []})
    with database.writer() as session:
        add_base_model(session, added, BASE)
        session.flush()
        remove_base_model(session, added, BASE.name)
    assert sweep_orphans(database, storage, 0) == [key]
    assert publish(prepared, database, storage) != key


def test_what_is_damaged_or_broken_off_is_not_there(
    settings: Settings,
    prepared: Settings,
    database: Database,
    storage: ObjectStorage,
    bucket: MemoryStore,
) -> None:
    key = publish(prepared, database, storage)
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(InterruptedError):
        StoredBases(settings, database, storage).fetch(BASE, stopping)
    intact = bytes(obstore.get(bucket, f"{key}/model.safetensors").bytes())
    obstore.put(bucket, f"{key}/model.safetensors", b"WEIGHTS")
    with pytest.raises(DamagedContentError, match=r"model\.safetensors does not match"):
        fetch(settings, database, storage)
    assert not (settings.models_root / BASE.name).exists()
    obstore.put(bucket, f"{key}/model.safetensors", intact)
    assert fetch(settings, database, storage), "it goes on"
