"""`/v1/files` through the official client and plain HTTP, on both databases."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.service import run_service
from tests.support.training_files import chat_line, training_bytes


def upload(client: OpenAI, content: bytes, name: str = "train.jsonl", purpose: str = "fine-tune"):
    return client.files.create(file=(name, content), purpose=purpose)  # pyright: ignore[reportArgumentType]


def test_a_file_goes_in_and_comes_out(client: OpenAI) -> None:
    content = training_bytes()
    file = upload(client, content)
    assert file.id.startswith("file-")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(content),
        "train.jsonl",
        "fine-tune",
        "uploaded",
    )
    assert file.model_extra is not None
    assert file.model_extra["sha256"] == hashlib.sha256(content).hexdigest()
    checked = client.files.wait_for_processing(file.id, poll_interval=0.05)
    assert checked == file.model_copy(update={"status": "processed"})
    assert client.files.content(file.id).read() == content

    assert client.files.delete(file.id).deleted is True
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(file.id)
    assert [other.id for other in client.files.list()] == []


def test_lists_are_paged_by_the_official_client(client: OpenAI) -> None:
    ids = [upload(client, training_bytes(), f"{n}.jsonl").id for n in range(5)]
    notes = upload(client, b"anything", "notes.txt", "user_data").id
    assert [file.id for file in client.files.list(limit=2)] == [notes, *reversed(ids)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == [*ids, notes]
    assert [file.id for file in client.files.list(purpose="user_data")] == [notes]


def test_another_projects_file_is_not_there(client: OpenAI, other_client: OpenAI) -> None:
    file = upload(client, training_bytes())
    for attempt in (other_client.files.retrieve, other_client.files.content, other_client.files.delete):
        with pytest.raises(openai.NotFoundError):
            attempt(file.id)
    assert list(other_client.files.list()) == []
    assert client.files.retrieve(file.id).id == file.id


def test_lines_end_with_a_newline_and_nothing_else(client: OpenAI) -> None:
    content = "\ufeff" + "\r\n".join(chat_line(f"a\u2028b\u0085c {n}") for n in range(10))
    file = upload(client, content.encode())
    assert client.files.wait_for_processing(file.id, poll_interval=0.05).status == "processed"
    assert client.files.content(file.id).read() == content.encode()


def test_names_are_for_people_only(client: OpenAI, http: httpx2.Client) -> None:
    assert upload(client, training_bytes(), "../../etc/passwd").filename == "passwd"
    assert len(upload(client, training_bytes(), "x" * 4096).filename) == 255
    response = http.post(
        "/v1/files", files={"file": ("a\r\nb\x00.jsonl", training_bytes())}, data={"purpose": "fine-tune"}
    )
    assert response.status_code == 200
    assert response.json()["filename"].isprintable()


def test_the_form_must_be_whole(http: httpx2.Client) -> None:
    def refused(status: int, code: str, **request: object) -> None:
        response = http.post("/v1/files", **request)  # pyright: ignore[reportArgumentType]
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text

    jsonl = ("a.jsonl", training_bytes())
    refused(400, "missing_required_parameter", files={"file": jsonl})
    refused(400, "missing_required_parameter", files={"other": jsonl}, data={"purpose": "fine-tune"})
    refused(400, "invalid_value", files={"file": jsonl}, data={"purpose": "nothing"})
    refused(415, "unsupported_media_type", json={"purpose": "fine-tune"})
    headers = {"content-type": "multipart/form-data"}
    refused(400, "invalid_multipart", content=b"x", headers=headers)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    refused(400, "invalid_multipart", content=b"--c\r\nnonsense", headers=headers)
    truncated = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
    refused(400, "invalid_multipart", content=truncated, headers=headers)
    refused(400, "invalid_multipart", files=[("file", jsonl), ("file", jsonl)], data={"purpose": "fine-tune"})


def test_a_file_over_the_limit_leaves_nothing(settings, database, tmp_path: Path) -> None:
    small = settings.model_copy(update={"max_file_bytes": 1000})
    with run_service(small) as service, service.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            upload(client, training_bytes(100))
        assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
        assert list(client.files.list()) == []
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


def test_a_file_that_the_storage_has_lost_is_503(http: httpx2.Client, client: OpenAI, settings) -> None:
    file = client.files.create(file=("train.jsonl", training_bytes()), purpose="fine-tune")
    [stored] = (settings.storage_root / "objects").glob("*/*")
    stored.unlink()
    answer = http.get(f"/v1/files/{file.id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    assert answer.headers["retry-after"]


def test_files_expire(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    file = client.files.create(
        file=("a.jsonl", training_bytes()),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at is not None
    assert 3590 <= file.expires_at - file.created_at <= 3610
    later = time.time() + 3700
    monkeypatch.setattr("app.files.service.time.time", lambda: later)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    monkeypatch.undo()
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(
            file=("a.jsonl", training_bytes()),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 10},
        )
    assert caught.value.param == "expires_after[seconds]"


def test_json_lines_of_every_kind_are_taken(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "leek"}'}}
    tools = {
        "messages": [
            {"role": "system", "content": "You cook."},
            {"role": "user", "content": [{"type": "text", "text": "Leeks?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": "Three.", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "stock", "parameters": {}}}],
        "parallel_tool_calls": False,
    }
    lines = [json.dumps(tools), json.dumps({"prompt": "Leek", "completion": " soup"})]
    file = upload(client, "\n".join(lines).encode())
    assert client.files.wait_for_processing(file.id, poll_interval=0.05).status == "processed"


def test_a_part_of_a_file(client: OpenAI, http: httpx2.Client) -> None:
    url = f"/v1/files/{upload(client, b'0123456789', purpose='user_data').id}/content"
    part = http.get(url, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    assert http.get(url).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "asked", ["bytes=5-1", "bytes=10-", "bytes=99-100", "bytes=a-b", "lines=1-2", "bytes"]
)
def test_a_part_that_a_file_does_not_have(client: OpenAI, http: httpx2.Client, asked: str) -> None:
    url = f"/v1/files/{upload(client, b'0123456789', purpose='user_data').id}/content"
    response = http.get(url, headers={"range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == "bytes */10"
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "invalid_range",
        "Range",
    )
