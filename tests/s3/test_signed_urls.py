"""Clients that send parts straight to the bucket, and get files from there, by signed URLs."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types import Upload

from app.cli import uploads
from app.core.settings import Settings
from app.storage import open_storage
from tests.s3.server import S3Server
from tests.support.breaking_proxy import breaking_proxy
from tests.support.command import TOQUE
from tests.support.service import API_KEY, Service, run_service
from tests.support.training_files import training_bytes

CONTENT = training_bytes(40)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def begin(client: OpenAI, size: int) -> Upload:
    return client.uploads.create(
        bytes=size, filename="train.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )


def announce(client: OpenAI, upload: Upload, content: bytes) -> dict[str, Any]:
    body = {"bytes": len(content), "sha256": sha256(content)}
    answer: Any = client.post(f"/uploads/{upload.id}/parts/signed", body=body, cast_to=object)
    return answer


def put(part: dict[str, Any], content: bytes) -> None:
    httpx2.put(part["url"], content=content).raise_for_status()


def arrived(client: OpenAI, upload: Upload) -> list[str]:
    there = client.get(f"/uploads/{upload.id}", cast_to=Upload)
    return [part["id"] for part in (there.model_extra or {})["parts"]]


def test_they_can_be_switched_off(service: Service, settings: Settings) -> None:
    disallowing = settings.model_copy(update={"storage_signed_uploads": False})
    with run_service(disallowing) as other, other.client() as client:
        upload = begin(client, len(CONTENT))
        with pytest.raises(openai.NotFoundError) as refused:
            announce(client, upload, CONTENT)
    assert refused.value.code == "no_signed_urls"


def test_the_command_sends_a_large_file_past_the_service(
    service: Service, settings: Settings, client: OpenAI, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(uploads.LARGE_BYTES + 1000))
    with breaking_proxy(int(service.url.rpartition(":")[2])) as proxy:
        environment = os.environ | {
            "TOQUE_BASE_URL": f"http://127.0.0.1:{proxy.port}/v1",
            "TOQUE_API_KEY": API_KEY,
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        command = [*TOQUE, "files", "upload", str(path), "--purpose", "user_data", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert proxy.sent < 100_000, "the service has seen no part of it"
    [file] = client.files.list()
    assert (file.bytes, file.model_extra) == (path.stat().st_size, {"sha256": sha256(path.read_bytes())})
    assert client.files.content(file.id).read() == path.read_bytes()
    assert [entry.key.partition("/")[0] for entry in open_storage(settings).files("")] == ["objects"]


def test_what_arrives_must_be_what_was_announced(client: OpenAI, settings: Settings) -> None:
    first, second = CONTENT[:1000], CONTENT[1000:]
    upload = begin(client, len(CONTENT))
    parts = [announce(client, upload, first), announce(client, upload, second)]
    assert parts[0].items() >= {"bytes": 1000, "sha256": sha256(first), "object": "upload.part"}.items()
    ids = [part["id"] for part in parts]

    def refused() -> tuple[int, str | None, str | None]:
        with pytest.raises(openai.APIStatusError) as caught:
            client.uploads.complete(upload.id, part_ids=ids)
        return caught.value.status_code, caught.value.code, caught.value.param

    put(parts[0], first)
    assert arrived(client, upload) == ids[:1]
    assert refused() == (400, "part_missing", "part_ids[1]")
    for other in (second + b"more", second[:-1], second[::-1]):
        put(parts[1], other)
        assert refused() == (400, "part_mismatch", "part_ids[1]")
    put(parts[1], second)
    assert arrived(client, upload) == ids
    done = client.uploads.complete(upload.id, part_ids=ids)
    assert done.file is not None
    assert client.files.wait_for_processing(done.file.id, poll_interval=0.05).status == "processed"
    assert client.files.content(done.file.id).read() == CONTENT
    assert [entry.key.partition("/")[0] for entry in open_storage(settings).files("")] == ["objects"]


def test_no_url_is_given_for_what_may_not_be_sent(client: OpenAI, other_client: OpenAI) -> None:
    upload = begin(client, 100)
    announce(client, upload, b"a" * 60)

    def code_of(asked: OpenAI, body: dict[str, Any]) -> tuple[int, str | None]:
        with pytest.raises(openai.APIStatusError) as caught:
            asked.post(f"/uploads/{upload.id}/parts/signed", body=body, cast_to=object)
        return caught.value.status_code, caught.value.code

    good = {"bytes": 40, "sha256": sha256(b"b" * 40)}
    assert code_of(other_client, good) == (404, "upload_not_found")
    assert code_of(client, good | {"bytes": 41}) == (413, "upload_too_large")
    assert code_of(client, good | {"bytes": 65 * 2**20})[0] == 400
    assert code_of(client, good | {"sha256": "../../objects"})[0] == 400
    client.uploads.cancel(upload.id)
    assert code_of(client, good) == (409, "upload_cancelled")


def test_a_url_lets_nobody_copy_what_others_have(
    client: OpenAI, other_client: OpenAI, settings: Settings
) -> None:
    other_client.files.create(file=("notes.txt", CONTENT), purpose="user_data")
    [there] = open_storage(settings).files("objects")
    upload = begin(client, len(CONTENT))
    part = announce(client, upload, CONTENT)
    source = f"{settings.storage_url.removeprefix('s3:/')}/{there.key}"
    copied = httpx2.put(part["url"], headers={"x-amz-copy-source": source})
    assert (copied.status_code, arrived(client, upload)) == (403, [])


def test_a_download_is_redirected_to_the_bucket(
    server: S3Server, settings: Settings, database: Any, other_client: OpenAI
) -> None:
    redirecting = settings.model_copy(update={"storage_redirects": True})
    with run_service(redirecting) as service, service.client() as client, service.http() as http:
        file = client.files.create(file=("notes.html", b"<script>1</script>"), purpose="user_data")
        assert client.files.content(file.id).read() == b"<script>1</script>", "the client follows"
        answer = http.get(f"/v1/files/{file.id}/content")
        assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
        url = answer.headers["location"]
        assert url.startswith(server.environment["AWS_ENDPOINT_URL"])
        assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["300"]
        there = httpx2.get(url, headers={"range": "bytes=1-6"})
        assert (there.status_code, there.content) == (206, b"script")
        assert there.headers["content-type"] == "application/octet-stream"
        assert there.headers["content-disposition"] == "attachment"
        assert httpx2.put(url, content=b"others").status_code == 403, "it is signed for reading"
        assert httpx2.get(url.replace("Expires=300", "Expires=3000")).status_code == 403
        client.files.delete(file.id)
        assert http.get(f"/v1/files/{file.id}/content").status_code == 404
    with pytest.raises(openai.NotFoundError):
        other_client.files.content(file.id)


def test_downloads_come_from_the_service_unless_that_is_switched_on(client: OpenAI, service: Service) -> None:
    file = client.files.create(file=("notes.txt", b"soup"), purpose="user_data")
    with service.http() as http:
        answer = http.get(f"/v1/files/{file.id}/content")
    assert (answer.status_code, answer.content) == (200, b"soup")
