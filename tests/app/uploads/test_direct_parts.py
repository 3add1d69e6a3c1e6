"""Uploads into a bucket, one that is in memory: `make test-s3` has a real one."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import obstore
import openai
import pytest
from obstore.store import MemoryStore
from openai import OpenAI
from openai.types import Upload
from typing_extensions import override

from app.api import main
from app.core.settings import Settings
from app.storage.cache import Cache
from app.storage.incoming_object import IncomingObject
from app.storage.objects import ObjectStorage
from tests.support.service import Service

RETRIED = {"x-stainless-retry-count": "1"}
pytestmark = pytest.mark.one_database


class _Bucket(ObjectStorage):
    """One whose URLs are keys."""

    @override
    def signed_url(self, key: str, method: str, seconds: int) -> str:
        return key


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def settings(
    settings: Settings, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    storage = _Bucket(cast(Any, bucket), Cache(tmp_path / "cache", 2**20))
    monkeypatch.setattr(main, "open_storage", lambda _: storage)
    return settings


def begin(client: OpenAI, size: int) -> Upload:
    return client.uploads.create(bytes=size, filename="a.bin", mime_type="x/y", purpose="user_data")


def announce(client: OpenAI, upload: Upload, content: bytes, **body: Any) -> dict[str, Any]:
    body = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | body
    options: Any = {"headers": RETRIED}
    return cast(
        "dict[str, Any]",
        client.post(f"/uploads/{upload.id}/parts/signed", body=body, cast_to=object, options=options),
    )


def test_equal_parts_are_two_parts_even_if_one_is_sent_again(client: OpenAI, bucket: MemoryStore) -> None:
    upload = begin(client, 2000)
    parts = [announce(client, upload, b"z" * 1000) for _ in range(2)]
    assert parts[0]["url"] == parts[1]["url"]
    obstore.put(bucket, parts[0]["url"], b"z" * 1000)
    done = client.uploads.complete(upload.id, part_ids=[part["id"] for part in parts])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"z" * 2000


def test_what_is_announced_again_as_smaller_makes_no_room(client: OpenAI) -> None:
    upload = begin(client, 1000)
    client.uploads.parts.create(upload.id, data=b"a" * 900)
    announce(client, upload, b"a" * 900, bytes=1)
    with pytest.raises(openai.APIStatusError) as caught:
        client.uploads.parts.create(upload.id, data=b"b" * 900)
    assert (caught.value.status_code, caught.value.code) == (413, "upload_too_large")
    client.uploads.parts.create(upload.id, data=b"c" * 100)


def test_nobody_waits_while_what_is_left_of_an_upload_is_removed(
    client: OpenAI, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, answered = threading.Event(), threading.Event()
    discard = IncomingObject.discard

    def slowly_discard(incoming: IncomingObject) -> None:
        removing.set()
        assert answered.wait(60), "the event loop waits"
        discard(incoming)

    monkeypatch.setattr(IncomingObject, "discard", slowly_discard)
    with ThreadPoolExecutor(1) as threads, service.http() as http:
        upload = threads.submit(client.files.create, file=("a.txt", b"soup"), purpose="user_data")
        assert removing.wait(60)
        assert http.get("/health/live", timeout=30).status_code == 200
        answered.set()
        assert upload.result().bytes == 4
