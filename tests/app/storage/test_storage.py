"""What every storage keeps to, and the cache through which buckets are read."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from app.storage.base import DamagedContentError, Storage, StorageUnavailableError, object_key
from app.storage.cache import KEPT_SECONDS, Cache
from app.storage.copying import ChangedError, copy_storage
from app.storage.local import LocalStorage
from app.storage.objects import ObjectStorage

ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 1000}


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def objects(bucket: MemoryStore, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(cast(Any, bucket), Cache(tmp_path / "cache", 2**20))


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return (
        LocalStorage(tmp_path / "storage")
        if request.param == "folder"
        else request.getfixturevalue("objects")
    )


def publish_adapter(storage: Storage, key: str, files: dict[str, bytes] = ADAPTER) -> None:
    with storage.incoming_folder() as incoming:
        for name, content in files.items():
            incoming.file(name).write(content)
        storage.publish_folder(incoming.complete(), key)


def publish(storage: Storage, content: bytes) -> str:
    with storage.incoming() as incoming:
        block = bytearray(1000)
        for start in range(0, len(content), len(block)):
            part = content[start : start + len(block)]
            block[: len(part)] = part
            incoming.write(memoryview(block)[: len(part)])  # callers reuse their buffers
        return storage.publish(incoming, object_key(incoming.sha256)).key


def test_what_is_published_is_there_until_it_is_removed(storage: Storage) -> None:
    content = os.urandom(12_345)
    key = publish(storage, content)
    assert key == publish(storage, content)
    assert (storage.exists(key), storage.size(key)) == (True, 12_345)
    with storage.open(key) as file:
        assert (file.read(1), file.read()) == (content[:1], content[1:])
    with storage.local(key) as path:
        assert path.read_bytes() == content
    storage.remove(key)
    storage.remove(key)
    assert (storage.exists(key), storage.size(key), list(storage.files(""))) == (False, 0, [])
    for read in (lambda: storage.open(key), lambda: storage.local(key).__enter__()):
        with pytest.raises(FileNotFoundError):
            read()


def test_a_folder_is_whole(storage: Storage) -> None:
    publish_adapter(storage, "adapters/a")
    with storage.local("adapters/a") as folder:
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in ADAPTER.items()}
    assert json.loads(found.pop("manifest.json")) == {"sha256": sums}
    assert found == ADAPTER
    names = [*ADAPTER, "manifest.json"]
    assert [entry.key for entry in storage.files("adapters/a")] == [f"adapters/a/{name}" for name in names]
    assert [(entry.key, entry.bytes) for entry in storage.list("adapters/*")] == [("adapters/a", None)]
    assert storage.size("adapters/a") == sum(entry.bytes or 0 for entry in storage.files("adapters/a"))
    storage.remove("adapters/a")
    assert not storage.exists("adapters/a")


def test_what_is_not_published_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), storage.incoming() as incoming:
        incoming.write(b"x" * 10_000)
        raise ZeroDivisionError
    with storage.incoming_folder() as folder:
        folder.file("a").write(b"a")
    assert list(storage.files("")) == []


def test_keys_are_listed_by_pattern(storage: Storage) -> None:
    for key in (
        "jobs/a/1/checkpoints/step-1/w",
        "jobs/a/2/checkpoints/tmp-step-2/w",
        "jobs/b/1/samples.json",
    ):
        storage.write(key, b"1")
    for pattern, expected in (
        ("jobs/*", ["jobs/a", "jobs/b"]),
        ("jobs/a/*/checkpoints/*", ["jobs/a/1/checkpoints/step-1", "jobs/a/2/checkpoints/tmp-step-2"]),
        ("jobs/*/*/checkpoints/step-*", ["jobs/a/1/checkpoints/step-1"]),
        ("jobs/*/*/samples.json", ["jobs/b/1/samples.json"]),
        ("objects/*/*", []),
    ):
        found = sorted(storage.list(pattern), key=lambda entry: entry.key)
        assert [entry.key for entry in found] == expected
        assert all(time.time() - 60 < entry.modified_ns / 1e9 <= time.time() + 1 for entry in found)


def test_a_storage_is_copied_in_several_runs(
    tmp_path: Path, objects: ObjectStorage, bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LocalStorage(tmp_path / "source")
    publish_adapter(source, "adapters/a")
    keys = [publish(source, bytes([number]) * 1000) for number in range(3)]
    (tmp_path / "source/tmp/half").write_bytes(b"half")
    first_run = copy_storage(source, objects)
    assert next(first_run).is_new  # and then it is interrupted
    assert [each.is_new for each in copy_storage(source, objects)] == [False, *[True] * 5]
    assert [each.is_new for each in copy_storage(source, objects)] == [False] * 6
    assert [entry.key for entry in objects.files("")] == [
        each for each in (entry.key for entry in source.files("")) if each != "tmp/half"
    ]
    back = LocalStorage(tmp_path / "back")
    assert len(list(copy_storage(objects, back))) == 6
    for key in keys:
        with back.open(key) as found, source.open(key) as expected:
            assert found.read() == expected.read()
    obstore.put(bucket, keys[0], b"rotten")
    with pytest.raises(ChangedError, match="is damaged"):
        list(copy_storage(objects, LocalStorage(tmp_path / "other")))


@pytest.mark.parametrize("key", ["../a", "/etc/passwd", "a/../../b"])
def test_no_key_leads_outside(storage: Storage, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: storage.open(key),
        lambda: storage.local(key).__enter__(),
        lambda: storage.write(key, b""),
        lambda: storage.remove(key),
        lambda: storage.exists(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a storage key"):
            call()


def test_a_copy_that_is_damaged_on_this_machine_is_fetched_again(
    objects: ObjectStorage, bucket: MemoryStore, tmp_path: Path
) -> None:
    publish_adapter(objects, "adapters/a")
    with objects.local("adapters/a") as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"rotten")
    another_process = ObjectStorage(cast(Any, bucket), Cache(tmp_path / "cache", 2**20))
    with another_process.local("adapters/a") as folder:
        assert (folder / "adapter_model.safetensors").read_bytes() == ADAPTER["adapter_model.safetensors"]


def test_what_the_bucket_has_damaged_is_told_from_a_bucket_that_is_away(
    objects: ObjectStorage, bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_adapter(objects, "adapters/a")
    obstore.put(bucket, "adapters/a/adapter_config.json", b"{ }")
    with pytest.raises(DamagedContentError, match=r"adapter_config\.json does not match"):
        objects.local("adapters/a").__enter__()
    key = publish(objects, b"whole")
    obstore.put(bucket, key, b"other")
    with pytest.raises(DamagedContentError, match="does not match"):
        objects.local(key).__enter__()

    def refuse(*_: object) -> None:
        raise GenericError("connection refused")

    monkeypatch.setattr(obstore, "get", refuse)
    with pytest.raises(StorageUnavailableError) as caught:
        objects.local("adapters/a").__enter__()
    assert (caught.value.status, caught.value.body.code) == (503, "storage_unavailable")
    assert "retry-after" in caught.value.headers


def test_several_that_ask_at_once_make_one_download(
    objects: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_adapter(objects, "adapters/a")
    asked: list[str] = []
    get, together = obstore.get, threading.Barrier(8)

    def count(bucket: Any, key: str) -> Any:
        asked.append(key)
        return get(bucket, key)

    def use() -> None:
        together.wait()
        with objects.local("adapters/a") as folder:
            assert (folder / "adapter_config.json").read_bytes() == b"{}"

    monkeypatch.setattr(obstore, "get", count)
    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [f"adapters/a/{name}" for name in (*ADAPTER, "manifest.json")]


@contextmanager
def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    now = time.time
    with monkeypatch.context() as patched:
        patched.setattr("app.storage.cache.time.time", lambda: now() + seconds)
        yield


def copies(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/copies").iterdir())


def test_copies_that_nobody_uses_make_room(
    objects: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 copies of 128 KiB, a cache of 1 MiB keeps 8: the latest, and one that is in use."""
    keys = [publish(objects, bytes([number]) * 2**17) for number in range(17)]
    with objects.local(keys[0]):
        for number, key in enumerate(keys[1:16], start=1):
            with objects.local(key) as path:
                pass
            os.utime(path, (number, number))
        with later(monkeypatch, KEPT_SECONDS + 60), objects.local(keys[16]):
            left = copies(tmp_path)
    assert [number for number, key in enumerate(keys) if key.replace("/", "%2F") in left] == [
        0,
        *range(10, 17),
    ]


def test_copies_that_were_asked_for_lately_stay(objects: ObjectStorage, tmp_path: Path) -> None:
    keys = [publish(objects, bytes([number]) * 2**17) for number in range(16)]
    for key in keys:
        with objects.local(key):
            pass
    assert len(copies(tmp_path)) == 16


def test_a_workspace_is_empty_and_is_left_to_nobody(objects: ObjectStorage, tmp_path: Path) -> None:
    left = tmp_path / "cache/work/dead"
    left.mkdir(parents=True)
    with objects.workspace("jobs/a/1") as one, objects.workspace("jobs/a/2") as other:
        (one / "checkpoints").mkdir()
        assert (list(other.iterdir()), left.exists(), one.exists()) == ([], False, True)
    assert not one.exists()
