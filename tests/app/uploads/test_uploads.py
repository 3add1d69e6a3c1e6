"""`/v1/uploads` through the official client and plain HTTP, on both databases."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types import Upload
from sqlalchemy import update

from app.core.database import Database
from app.core.settings import Settings
from app.uploads import models, router
from tests.support.service import Service, run_service
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until


def begin(client: OpenAI, content: bytes | int, purpose: str = "user_data", **fields: Any) -> Upload:
    size = content if isinstance(content, int) else len(content)
    return client.uploads.create(
        bytes=size,
        filename="a.bin",
        mime_type="application/octet-stream",
        purpose=purpose,  # pyright: ignore[reportArgumentType]
        **fields,
    )


def add(client: OpenAI, upload: Upload, content: bytes, **options: Any) -> str:
    return client.uploads.parts.create(upload.id, data=content, **options).id


def stored(settings: Settings) -> list[Path]:
    return sorted(path for path in settings.storage_root.rglob("*") if path.is_file())


def expire(database: Database, upload: Upload) -> None:
    with database.writer() as session:
        past = update(models.Upload).where(models.Upload.id == upload.id).values(expires_at=time.time() - 1)
        session.execute(past)


def test_the_official_client_uploads_in_chunks(client: OpenAI, settings: Settings, tmp_path: Path) -> None:
    content = training_bytes(200)
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    done = client.uploads.upload_file_chunked(
        file=path,
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=1000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert done.id.startswith("upload_")
    assert (done.status, done.bytes, done.filename, done.purpose) == (
        "completed",
        len(content),
        "train.jsonl",
        "fine-tune",
    )
    assert 3590 <= done.expires_at - done.created_at <= 3610
    assert done.file is not None
    assert client.files.retrieve(done.file.id).model_extra == {"sha256": hashlib.sha256(content).hexdigest()}
    assert client.files.content(done.file.id).read() == content
    assert client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=done.file.id).id
    assert [path.name for path in stored(settings) if "uploads" in path.parts] == [], "the parts are gone"


def test_parts_come_in_any_order_and_at_once(client: OpenAI) -> None:
    pieces = [bytes([number]) * (1000 + number) for number in range(20)]
    upload = begin(client, sum(map(len, pieces)))
    assert upload.status == "pending"
    with ThreadPoolExecutor(8) as senders:
        sent = list(senders.map(lambda number: add(client, upload, pieces[number]), reversed(range(20))))
    ids = sent[::-1]
    assert all(part_id.startswith("part_") for part_id in ids)

    there = client.get(f"/uploads/{upload.id}", cast_to=Upload)
    assert there.model_extra is not None
    assert {part["id"]: (part["bytes"], part["sha256"]) for part in there.model_extra["parts"]} == {
        part_id: (len(piece), hashlib.sha256(piece).hexdigest())
        for part_id, piece in zip(ids, pieces, strict=True)
    }
    order = [3, 1, *range(4, 20), 0, 2]
    done = client.uploads.complete(upload.id, part_ids=[ids[number] for number in order])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"".join(pieces[number] for number in order)


def test_equal_parts_are_two_parts(client: OpenAI, settings: Settings) -> None:
    upload = begin(client, 2000)
    retried = {"x-stainless-retry-count": "1"}
    ids = [add(client, upload, b"z" * 1000), add(client, upload, b"z" * 1000, extra_headers=retried)]
    assert ids[0] != ids[1]
    assert len(stored(settings)) == 1, "their bytes are stored once"
    named = [add(client, upload, b"y", extra_headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert named[0] == named[1]
    done = client.uploads.complete(upload.id, part_ids=ids)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"z" * 2000


def test_the_parts_must_be_the_files(client: OpenAI, other_client: OpenAI) -> None:
    upload, another = begin(client, b"abc"), begin(client, b"abc")
    first, second = add(client, upload, b"a"), add(client, upload, b"bc")
    foreign = add(client, another, b"bc")

    def refused(part_ids: list[str], param: str, code: str, **fields: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.complete(upload.id, part_ids=part_ids, **fields)
        assert (caught.value.param, caught.value.code) == (param, code)

    refused([first, "part_none"], "part_ids[1]", "part_not_found")
    refused([first, foreign], "part_ids[1]", "part_not_found")
    refused([first, second, first], "part_ids[2]", "part_repeated")
    refused([first], "part_ids", "bytes_mismatch")
    refused([], "part_ids", "invalid_value")
    refused([first, second], "md5", "md5_mismatch", md5=hashlib.md5(b"abd").hexdigest())
    refused([first, second], "md5", "invalid_value", md5="abc")
    for attempt in (
        lambda: other_client.uploads.parts.create(upload.id, data=b"x"),
        lambda: other_client.uploads.complete(upload.id, part_ids=[first, second]),
        lambda: other_client.uploads.cancel(upload.id),
        lambda: other_client.get(f"/uploads/{upload.id}", cast_to=Upload),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            attempt()
        assert caught.value.code == "upload_not_found"
    assert list(client.files.list()) == []
    done = client.uploads.complete(
        upload.id, part_ids=[first, second], md5=hashlib.md5(b"abc").hexdigest().upper()
    )
    assert done.status == "completed"


def test_a_folder_has_no_urls_to_send_parts_to(
    client: OpenAI, http: httpx2.Client, settings: Settings
) -> None:
    upload = begin(client, 3)
    body = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    refused = http.post(f"/v1/uploads/{upload.id}/parts/signed", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_signed_urls")
    assert http.get(f"/v1/uploads/{upload.id}").json()["parts"] == []
    assert client.uploads.complete(upload.id, part_ids=[add(client, upload, b"abc")]).file


@pytest.mark.parametrize("final", ["completed", "cancelled", "expired"])
def test_what_is_over_stays_as_it_is(
    client: OpenAI, http: httpx2.Client, database: Database, settings: Settings, final: str
) -> None:
    upload = begin(client, b"abc")
    part = add(client, upload, b"abc")
    if final == "completed":
        client.uploads.complete(upload.id, part_ids=[part])
    elif final == "cancelled":
        assert client.uploads.cancel(upload.id).status == "cancelled"
        assert client.uploads.cancel(upload.id).status == "cancelled", "a retry of the client finds it so"
        assert stored(settings) == []
    else:
        expire(database, upload)
    before = http.get(f"/v1/uploads/{upload.id}").json()
    assert before["status"] == final

    url = f"/v1/uploads/{upload.id}"
    answers = [
        http.post(f"{url}/parts", files={"data": b"more"}),
        http.post(f"{url}/complete", json={"part_ids": [part]}),
    ]
    if final != "cancelled":
        answers.append(http.post(f"{url}/cancel"))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, f"upload_{final}")
        assert answer.headers["x-should-retry"] == "false"
    assert http.get(url).json() == before


def test_racing_completes_make_one_file(client: OpenAI, service: Service) -> None:
    upload = begin(client, 400_000)
    ids = [add(client, upload, os.urandom(100_000)) for _ in range(4)]

    def race(headers: dict[str, str]) -> list[httpx2.Response]:
        gate = threading.Barrier(6)

        def complete(_: int) -> httpx2.Response:
            with service.http() as http:
                gate.wait()
                return http.post(f"/v1/uploads/{upload.id}/complete", json={"part_ids": ids}, headers=headers)

        with ThreadPoolExecutor(6) as racers:
            return list(racers.map(complete, range(6)))

    statuses = sorted(answer.status_code for answer in race({}))
    assert statuses == [200, 409, 409, 409, 409, 409]
    [file] = client.files.list()

    upload = begin(client, 100_000)
    ids = [add(client, upload, os.urandom(100_000))]
    answers = race({"idempotency-key": "complete once"})
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    [made] = {answer.json()["file"]["id"] for answer in answers}
    assert {other.id for other in client.files.list()} == {file.id, made}


def test_the_clients_own_retry_of_a_completion_is_known(client: OpenAI) -> None:
    upload = begin(client, b"abc")
    part = add(client, upload, b"abc")
    again = {"x-stainless-retry-count": "1"}
    first = client.uploads.complete(upload.id, part_ids=[part])
    assert client.uploads.complete(upload.id, part_ids=[part], extra_headers=again) == first
    assert first.file is not None
    client.files.delete(first.file.id)
    assert client.uploads.complete(upload.id, part_ids=[part], extra_headers=again).file is None


def test_nobody_waits_while_the_parts_are_put_together(client: OpenAI, settings: Settings) -> None:
    upload = begin(client, b"abc")
    part = add(client, upload, b"abc")
    [path] = stored(settings)
    path.unlink()
    os.mkfifo(path)  # a part that cannot be read before something is written to it
    with ThreadPoolExecutor(1) as completing:
        completed = completing.submit(client.uploads.complete, upload.id, part_ids=[part])
        opened: list[int] = []

        def reader_is_there() -> bool:
            try:
                opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                return False
            return True

        wait_until(reader_is_there, "the parts are being read")
        assert begin(client.with_options(timeout=30), b"x").status == "pending"
        assert add(client.with_options(timeout=30), upload, b"abc")
        os.write(opened[0], b"abc")
        os.close(opened[0])
        done = completed.result(60)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"abc"


def test_a_training_file_that_is_wrong_is_checked_like_any_other(client: OpenAI) -> None:
    content = training_bytes(2) + b"{\n"
    upload = begin(client, content, "fine-tune")
    ids = [add(client, upload, content[:100]), add(client, upload, content[100:])]
    completed = client.uploads.complete(upload.id, part_ids=ids)
    assert completed.file is not None
    checked = client.files.wait_for_processing(completed.file.id, poll_interval=0.05)
    assert checked.status == "error"
    assert "Line 3 " in str(checked.status_details)


def test_the_file_may_expire(client: OpenAI) -> None:
    upload = begin(client, b"abc", expires_after={"anchor": "created_at", "seconds": 3600})
    done = client.uploads.complete(upload.id, part_ids=[add(client, upload, b"abc")])
    assert done.file is not None
    assert done.file.expires_at is not None
    assert 3590 <= done.file.expires_at - done.file.created_at <= 3610
    for wrong in ({"anchor": "created_at", "seconds": 10}, {"anchor": "now", "seconds": 3600}):
        with pytest.raises(openai.BadRequestError) as caught:
            begin(client, b"abc", expires_after=wrong)
        assert caught.value.param is not None
        assert caught.value.param.startswith("expires_after.")


def test_what_is_too_large_is_413(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "MAX_PART_BYTES", 500)
    small = settings.model_copy(update={"max_upload_bytes": 1000})

    def refused(attempt: Callable[[], object], code: str, param: str) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            attempt()
        assert (caught.value.status_code, caught.value.code, caught.value.param) == (413, code, param)

    with run_service(small) as running, running.client() as client:
        refused(lambda: begin(client, 1001), "upload_too_large", "bytes")
        upload = begin(client, 1000)
        refused(lambda: add(client, upload, b"x" * 501), "file_too_large", "data")
        for letter in (b"a", b"b"):
            add(client, upload, letter * 500)
        add(client, upload, b"a" * 500)  # takes no more room
        refused(lambda: add(client, upload, b"c"), "upload_too_large", "data")
    assert len(stored(settings)) == 2


def test_parts_have_no_more_bytes_than_were_announced(client: OpenAI, settings: Settings) -> None:
    upload = begin(client, 3)
    add(client, upload, b"ab")
    with pytest.raises(openai.APIStatusError, match="4 bytes; 3 were announced") as caught:
        add(client, upload, b"cd")
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (
        413,
        "upload_too_large",
        "data",
    )
    assert len(stored(settings)) == 1
    assert client.uploads.complete(
        upload.id, part_ids=[add(client, upload, part) for part in (b"ab", b"c")]
    ).file


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", 0),
        ("bytes", -1),
        ("bytes", "12"),
        ("bytes", 1.5),
        ("bytes", None),
        ("filename", ""),
        ("filename", None),
        ("purpose", "fine-tune-results"),
        ("mime_type", "text/\u0000"),
        ("mime_type", ""),
        ("mime_type", "x" * 256),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_field_that_is_wrong_is_named(http: httpx2.Client, field: str, value: object) -> None:
    good = {"bytes": 3, "filename": "a", "purpose": "user_data", "mime_type": "text/plain"}
    answer = http.post("/v1/uploads", json=good | {field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
