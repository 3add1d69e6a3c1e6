"""openai-python: files, uploads in parts, and the errors that name a bad line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

client = OpenAI()


def lines(count: int = 10) -> bytes:
    """Examples as OpenAI's guide writes them."""
    return b"".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"How long does pie number {number} bake?"},
                    {"role": "assistant", "content": f"{number} minutes."},
                ]
            }
        ).encode()
        + b"\n"
        for number in range(20, 20 + count)
    )


def test_a_file_is_uploaded_from_a_path_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "pies.jsonl"
    path.write_bytes(lines())
    file = client.files.create(file=path, purpose="fine-tune")
    assert (file.object, file.filename, file.purpose) == ("file", "pies.jsonl", "fine-tune")
    assert file.bytes == len(lines())
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
    assert client.files.content(file.id).read() == lines()
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)


def test_a_file_is_uploaded_from_memory_and_from_an_open_file(tmp_path: Path) -> None:
    from_memory = client.files.create(file=("a.jsonl", lines(11)), purpose="fine-tune")
    from_stream = client.files.create(file=("b.jsonl", io.BytesIO(lines(12))), purpose="fine-tune")
    assert from_memory.bytes == len(lines(11))
    assert from_stream.bytes == len(lines(12))


def test_lists_of_files_are_paged_by_the_client() -> None:
    created = {
        client.files.create(file=(f"{n}.jsonl", lines(10 + n)), purpose="fine-tune").id for n in range(5)
    }
    first = client.files.list(limit=2, purpose="fine-tune")
    assert len(first.data) == 2
    assert first.has_next_page()
    assert created <= {file.id for file in client.files.list(limit=2, purpose="fine-tune")}


def test_a_large_file_is_uploaded_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(lines(2000))
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=64 * 1024
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == lines(2000)


def test_an_upload_is_cancelled() -> None:
    upload = client.uploads.create(
        bytes=100, filename="x.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    assert client.uploads.cancel(upload.id).status == "cancelled"


def test_a_file_that_is_not_there_raises_not_found() -> None:
    with pytest.raises(NotFoundError) as raised:
        client.files.retrieve("file-none")
    assert raised.value.status_code == 404
    assert raised.value.request_id
