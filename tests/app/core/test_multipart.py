"""A form is the same form, however its bytes are cut on the way."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core import multipart as upload_form
from app.core.errors import ToqueError
from app.core.multipart import UploadForm
from app.storage.local import LocalStorage

BOUNDARY = b"edge"
# Bytes that look like boundaries, besides any others.
pieces = st.sampled_from(
    [b"\r\n--edge", b"\r\n--edg", b"--edge--", b"\r", b"\n", b"--", b"\x00"]
) | st.binary(max_size=40)
contents = st.lists(pieces, max_size=12).map(b"".join).filter(lambda content: b"\r\n--edge" not in content)


def body(content: bytes, purpose: bytes) -> bytes:
    return b"".join(
        [
            b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n',
            b"Content-Type: application/octet-stream\r\n\r\n" + content,
            b'\r\n--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose,
            b"\r\n--edge--\r\n",
        ]
    )


async def cut(whole: bytes, lengths: list[int]) -> AsyncIterator[bytes]:
    for length in lengths:
        yield whole[:length]
        whole = whole[length:]
    yield whole


def receive(whole: bytes, lengths: list[int], limit: int = 10**6) -> tuple[UploadForm, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))
        with storage.incoming() as incoming:
            form = UploadForm({"file": incoming}, limit)
            parts = cut(whole, lengths)
            asyncio.run(form.receive(f"multipart/form-data; boundary={BOUNDARY.decode()}", parts))
            storage.publish(incoming, "received")
        with storage.open("received") as file:
            return form, file.read()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small bodies are many blocks."""
    monkeypatch.setattr(upload_form, "_BLOCK_BYTES", 16)


@settings(max_examples=150)
@given(contents, st.lists(st.integers(1, 60), max_size=20))
def test_the_file_is_what_was_sent(content: bytes, lengths: list[int]) -> None:
    form, received = receive(body(content, b"fine-tune"), lengths)
    assert received == content
    assert (form.fields, form.filenames) == ({"purpose": "fine-tune"}, {"file": "a.bin"})


@settings(max_examples=100)
@given(contents, st.integers(0, 250), st.lists(st.integers(1, 60), max_size=20))
def test_a_form_that_breaks_off_is_refused(content: bytes, length: int, lengths: list[int]) -> None:
    whole = body(content, b"fine-tune")
    with pytest.raises(ToqueError) as caught:
        receive(whole[: min(length, len(whole) - 6)], lengths)
    assert caught.value.body.code == "invalid_multipart"


@settings(max_examples=100)
@given(st.binary(max_size=300), st.lists(st.integers(1, 60), max_size=20))
def test_any_bytes_are_refused_in_the_envelope(whole: bytes, lengths: list[int]) -> None:
    with pytest.raises(ToqueError) as caught:
        receive(whole, lengths)
    assert caught.value.status == 400
