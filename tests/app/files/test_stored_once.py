"""Equal bytes are stored once, and go when nothing needs them any more, on both databases."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import update

from app.core.database import Database
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.orphans import AGE_SECONDS, find_orphans, sweep_object, sweep_orphans
from app.storage import open_storage
from app.storage.base import Storage, object_key
from app.uploads.models import Upload
from tests.support.jobs import create, upload
from tests.support.service import Service
from tests.support.training_files import training_bytes

LONG_AGO = time.time() - AGE_SECONDS - 60


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


def key_of(content: bytes) -> str:
    return object_key(hashlib.sha256(content).hexdigest())


def grow_old(settings: Settings) -> None:
    """As if nothing had been written for a day."""
    for path in settings.storage_root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def change(database: Database, file_id: str, **values: float) -> None:
    with database.writer() as session:
        session.execute(update(File).where(File.id == file_id).values(**values))


def test_the_same_bytes_are_stored_once(
    client: OpenAI, other_client: OpenAI, storage: Storage, settings: Settings, database: Database
) -> None:
    content = training_bytes()
    files = [upload(client, content), upload(client, content, "user_data"), upload(other_client, content)]
    assert [entry.key for entry in storage.files("")] == [key_of(content)]
    client.files.delete(files[0])
    change(database, files[0], deleted_at=LONG_AGO)
    grow_old(settings)
    assert sweep_orphans(database, storage) == []
    assert client.files.content(files[1]).read() == content
    assert other_client.files.content(files[2]).read() == content
    for file in files[1:]:
        change(database, file, deleted_at=LONG_AGO)
    assert sweep_orphans(database, storage) == [key_of(content)]
    assert upload(client, content)
    assert (settings.storage_root / key_of(content)).read_bytes() == content


def test_bytes_stay_for_a_day(
    client: OpenAI, storage: Storage, settings: Settings, database: Database
) -> None:
    deleted, young = training_bytes(), training_bytes(13)
    client.files.delete(upload(client, deleted))
    grow_old(settings)
    assert sweep_orphans(database, storage) == [], "a reader may have just begun"
    change(database, upload(client, young), deleted_at=LONG_AGO)
    assert sweep_orphans(database, storage) == [], "a row may be about to name them"
    with database.reader() as session:
        assert find_orphans(session, storage).missing == []


@pytest.mark.parametrize("gone", ["deleted", "expired"])
def test_a_job_keeps_its_bytes_until_it_ends(
    client: OpenAI, storage: Storage, settings: Settings, database: Database, gone: str
) -> None:
    content, held_out = training_bytes(20), training_bytes(13)
    ids = [upload(client, content), upload(client, held_out)]
    job = create(client, training_file=ids[0], validation_file=ids[1])
    for file in ids:
        if gone == "deleted":
            client.files.delete(file)
        change(database, file, **{f"{gone}_at" if gone == "deleted" else "expires_at": LONG_AGO})
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file)
    grow_old(settings)
    for status in ("validating_files", "queued", "running", "paused"):
        with database.writer() as session:
            session.execute(update(FineTuningJob).values(status=status))
        assert sweep_orphans(database, storage) == []
    client.fine_tuning.jobs.cancel(job.id)
    assert sweep_orphans(database, storage) == sorted(key_of(each) for each in (content, held_out))
    with database.reader() as session:
        assert find_orphans(session, storage).missing == []

    for shown in (client.fine_tuning.jobs.retrieve(job.id), client.fine_tuning.jobs.list().data[0]):
        assert (shown.training_file, shown.validation_file) == tuple(ids)
        assert shown.model_extra is not None
        assert [shown.model_extra[f"{kind}_file_sha256"] for kind in ("training", "validation")] == [
            hashlib.sha256(each).hexdigest() for each in (content, held_out)
        ]


def test_an_expired_file_is_gone_at_once(client: OpenAI, database: Database) -> None:
    file = client.files.create(
        file=("a.jsonl", training_bytes()),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    ).id
    other = upload(client)
    change(database, file, expires_at=time.time() - 1)
    attempts: list[Callable[[], Any]] = [
        lambda: client.files.retrieve(file),
        lambda: client.files.content(file),
        lambda: client.files.delete(file),
        lambda: create(client, training_file=file),
        lambda: create(client, training_file=other, validation_file=file),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError) as caught:
            attempt()
        assert caught.value.code == "file_not_found"
    assert [each.id for each in client.files.list()] == [other]
    assert list(client.fine_tuning.jobs.list()) == []


def test_parts_of_uploads_that_are_over_are_swept(
    client: OpenAI, storage: Storage, settings: Settings, database: Database
) -> None:
    opened, left = (
        client.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="user_data")
        for _ in range(2)
    )
    for each in (opened, left):
        client.uploads.parts.create(each.id, data=b"x")
    with database.writer() as session:
        session.execute(update(Upload).where(Upload.id == left.id).values(expires_at=LONG_AGO))
    grow_old(settings)
    assert sweep_orphans(database, storage) == [f"uploads/{left.id}"]
    assert [entry.key for entry in storage.list("uploads/*")] == [f"uploads/{opened.id}"]


def test_files_that_were_stored_by_their_own_names_go_on(
    client: OpenAI, storage: Storage, settings: Settings, database: Database
) -> None:
    content = training_bytes()
    file, deleted = upload(client, content), upload(client, content)
    with database.writer() as session:
        for each in (file, deleted):
            session.get_one(File, each).storage_key = f"files/{each}"
            storage.write(f"files/{each}", content)
    change(database, deleted, deleted_at=LONG_AGO)
    grow_old(settings)
    assert sweep_orphans(database, storage) == [
        f"files/{deleted}",
        key_of(content),
    ]
    assert client.files.content(file).read() == content
    assert create(client, training_file=file).status == "queued"


def test_an_upload_of_bytes_that_are_being_swept_has_them(
    service: Service, client: OpenAI, storage: Storage, settings: Settings, database: Database
) -> None:
    """Many upload, read and delete the same bytes, while they are swept as if they were a day old at once."""
    content = os.urandom(5000)
    path = settings.storage_root / key_of(content)
    ended, swept = threading.Event(), 0
    lost: list[str] = []

    def sweep() -> None:
        nonlocal swept
        while not ended.is_set():
            swept += path.exists() and sweep_object(database, storage, key_of(content), age_seconds=-60)

    def use() -> None:
        with service.http() as http:
            began = time.monotonic()
            while swept < 10 and time.monotonic() - began < 120:
                answer = http.post(
                    "/v1/files", files={"file": ("a", content)}, data={"purpose": "user_data"}
                ).json()
                read = http.get(f"/v1/files/{answer['id']}/content")
                if read.status_code != 200 or read.content != content:
                    lost.append(read.text)
                http.delete(f"/v1/files/{answer['id']}")

    sweeper = threading.Thread(target=sweep)
    users = [threading.Thread(target=use) for _ in range(2)]
    for thread in (sweeper, *users):
        thread.start()
    for thread in users:
        thread.join()
    ended.set()
    sweeper.join()
    assert lost == []
    assert swept >= 10, "it was swept in between"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\windows\\system.ini", "system.ini"),
        ("/", "file"),
        ("..", ".."),
        ("a\nb\r\nc.jsonl", "abc.jsonl"),
        ("a\u0000b", "ab"),
        ("\u202egpj.jsonl", "gpj.jsonl"),
        ("x" * 4096, "x" * 255),
        ("größe 汤.jsonl", "größe 汤.jsonl"),
    ],
)
def test_names_are_for_people_and_open_nothing(
    http: httpx2.Client, storage: Storage, given: str, kept: str
) -> None:
    """Whatever a name holds, bytes lie where their content puts them."""
    whole = b"".join(
        [
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n',
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="',
            given.encode().replace(b"\n", b"%0A").replace(b"\r", b"%0D").replace(b"\\", b"\\\\"),
            b'"\r\n\r\nabc\r\n--b--\r\n',
        ]
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    at_once = http.post("/v1/files", content=whole, headers=headers)
    if "\n" not in given:  # a form escapes them, and nobody unescapes names
        assert (at_once.status_code, at_once.json()["filename"]) == (200, kept)
    created = http.post(
        "/v1/uploads",
        json={"filename": given, "bytes": 3, "purpose": "user_data", "mime_type": "text/plain"},
    ).json()
    part = http.post(f"/v1/uploads/{created['id']}/parts", files={"data": b"abc"}).json()
    done = http.post(f"/v1/uploads/{created['id']}/complete", json={"part_ids": [part["id"]]}).json()
    assert (created["filename"], done["file"]["filename"]) == (kept, kept)
    download = http.get(f"/v1/files/{done['file']['id']}/content")
    assert download.content == b"abc"
    assert [entry.key for entry in storage.files("")] == [key_of(b"abc")]
