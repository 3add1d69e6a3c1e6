"""The storage itself, in a bucket of a real server."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import obstore
import pytest
from openai import OpenAI

from app.core.settings import Settings
from app.storage import open_storage
from app.storage.base import Storage, StorageUnavailableError, object_key
from app.storage.bucket import open_bucket
from app.storage.cache import Cache
from app.storage.local import LocalStorage
from app.storage.objects import ObjectStorage
from tests.s3.server import S3Server
from tests.support.service import Service
from tests.support.training_files import training_bytes

COLD_SECONDS = 0.05
"""How much longer the first use of an adapter may take than from a folder."""
ADAPTER_BYTES = 10_000_000


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


def publish(storage: Storage, content: bytes) -> str:
    with storage.incoming() as incoming:
        for start in range(0, len(content), 2**20):
            incoming.write(content[start : start + 2**20])
        return storage.publish(incoming, object_key(incoming.sha256)).key


def publish_adapter(storage: Storage, key: str) -> None:
    with storage.incoming_folder() as incoming:
        incoming.file("adapter_config.json").write(b"{}")
        incoming.file("adapter_model.safetensors").write(os.urandom(ADAPTER_BYTES))
        storage.publish_folder(incoming.complete(), key)


def test_a_large_file_is_sent_in_parts_and_copied_by_the_server(storage: Storage) -> None:
    content = os.urandom(30 * 2**20 + 1)
    key = publish(storage, content)
    assert key == f"objects/{key[8:10]}/{hashlib.sha256(content).hexdigest()}"
    assert [(entry.key, entry.bytes) for entry in storage.files("")] == [(key, len(content))]
    with storage.open(key) as file, storage.local(key) as path:
        assert file.read() == path.read_bytes() == content
    storage.remove(key)
    assert list(storage.files("")) == []


def test_an_empty_file_and_an_upload_that_is_broken_off(storage: Storage) -> None:
    key = publish(storage, b"")
    with pytest.raises(ZeroDivisionError), storage.incoming() as incoming:
        incoming.write(os.urandom(20 * 2**20))
        raise ZeroDivisionError
    assert [(entry.key, entry.bytes) for entry in storage.files("")] == [(key, 0)]


def test_a_cold_adapter_costs_little_more_than_one_in_a_folder(
    storage: Storage, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    folder = LocalStorage(tmp_path / "folder")
    seconds: dict[str, list[float]] = {"folder": [], "bucket": []}
    for number in range(7):
        for name, each in (("folder", folder), ("bucket", storage)):
            publish_adapter(each, f"adapters/{number}")
            started = time.perf_counter()
            with each.local(f"adapters/{number}") as path:
                assert len((path / "adapter_model.safetensors").read_bytes()) == ADAPTER_BYTES
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    record_property("cold_adapter_seconds", medians)
    print(f"an adapter of {ADAPTER_BYTES:,} bytes: {medians}")
    assert medians["bucket"] - medians["folder"] <= COLD_SECONDS


def test_the_api_says_503_while_the_server_is_away(
    server: S3Server, service: Service, client: OpenAI
) -> None:
    content = training_bytes()
    file = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id, poll_interval=0.05).status == "processed"
    lost = client.files.create(file=("notes.txt", b"cold"), purpose="user_data").id
    with server.away(), service.http() as http:
        for refused in (
            http.get(f"/v1/files/{lost}/content"),
            http.post("/v1/files", files={"file": b"x" * 100}, data={"purpose": "user_data"}),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
            assert refused.headers["retry-after"] == "5"
        assert http.get(f"/v1/files/{file.id}").status_code == 200
    assert client.files.content(lost).read() == b"cold"
    assert client.files.content(file.id).read() == content


def test_a_server_that_is_away_is_told_from_a_file_that_is_not_there(
    server: S3Server, storage: Storage
) -> None:
    with pytest.raises(FileNotFoundError):
        storage.open("objects/aa/aaaa")
    with server.away(), pytest.raises(StorageUnavailableError):
        storage.open("objects/aa/aaaa")


def test_what_the_server_does_not_copy_at_once_is_copied_in_parts(settings: Settings, tmp_path: Path) -> None:
    bucket = open_bucket(settings.storage_url)
    storage = ObjectStorage(bucket, Cache(tmp_path / "small", 2**30), largest_copy=2**20)
    content = os.urandom(70 * 2**20)
    key = publish(storage, content)
    with storage.open(key) as file:
        assert file.read() == content
    assert obstore.get(bucket, key).attributes["Content-Disposition"] == "attachment"
    assert [entry.key for entry in storage.files("")] == [key]


def test_processes_of_a_machine_make_one_download(
    server: S3Server, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    publish_adapter(storage, "adapters/one")
    script = (
        "import sys; from app.core.settings import Settings; from app.storage import open_storage\n"
        "storage = open_storage(Settings()); print('ready', flush=True); sys.stdin.readline()\n"
        "with storage.local('adapters/one') as path: print(len(list(path.iterdir())), path)"
    )
    environment = os.environ | {
        "TOQUE_STORAGE_URL": settings.storage_url,
        "TOQUE_STORAGE_CACHE_DIR": str(tmp_path / "shared"),
    }
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", script],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(8)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        before = server.requests("GET")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1, "they have the same copy"
    assert answers.pop().startswith("3 ")
    assert server.requests("GET") - before == 3, "manifest, configuration and weights, once for all"
