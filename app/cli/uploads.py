"""Uploads a large file in parts, several at once, and resumes an interrupted upload.

Where the service's files are in a bucket, the parts are put straight there, if it can be reached.
Between two commands, the upload's id is kept in a small file in the user's state folder; the service knows
which parts have arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, cast

from platformdirs import user_state_path
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.cli.output import fail, stderr

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject, Upload

LARGE_BYTES = 64 * 10**6
"""Smaller files go up in one request."""
PART_BYTES = 16 * 2**20
_AT_ONCE = 4
_RETRIES = 6
"""Retries of a part, with back-off; half a minute in all."""
_CONNECT_SECONDS = 5.0
"""How long the first parts wait for a bucket that cannot be reached from here."""
_PUT_SECONDS = 30.0
"""How long the bucket may take to accept some bytes, or to answer."""
_EXPIRY_SECONDS = 86400.0


def upload_in_parts(client: OpenAI, path: Path, purpose: str) -> FileObject:
    """Uploads a file; resumes the upload of an earlier command that was interrupted."""
    from openai import APIConnectionError  # noqa: PLC0415 - takes a second to import

    size = path.stat().st_size
    record = _record(client, path, purpose)
    patient = client.with_options(max_retries=_RETRIES)
    with _progress(path, size) as advance:
        try:
            upload = _find(client, record) or _create(client, record, path, size, purpose)
            if upload.status == "pending":
                part_ids = _send_parts(patient, upload, path, size, advance)
                upload = patient.uploads.complete(
                    upload.id,
                    part_ids=part_ids,
                    extra_headers={"Idempotency-Key": f"{upload.id} complete"},
                )
        except APIConnectionError:
            stderr.print("What has arrived is kept for an hour: run the command again, and it goes on there.")
            raise
    record.unlink(missing_ok=True)
    if upload.file is None:
        fail(f"the upload {upload.id} is {upload.status}, but its file was deleted")
    return upload.file


def _find(client: OpenAI, record: Path) -> Upload | None:
    """Returns an earlier command's upload that is unfinished, or whose file was never reported."""
    from openai import NotFoundError  # noqa: PLC0415 - as above
    from openai.types import Upload  # noqa: PLC0415 - as above

    try:
        upload_id = json.loads(record.read_text("utf-8"))["upload_id"]
        upload = client.get(f"/uploads/{upload_id}", cast_to=Upload)
    except (OSError, ValueError, KeyError, TypeError, NotFoundError):
        return None
    return upload if upload.status == "pending" or upload.file is not None else None


def _create(client: OpenAI, record: Path, path: Path, size: int, purpose: str) -> Upload:
    upload = client.uploads.create(
        bytes=size,
        filename=path.name,
        mime_type="application/octet-stream",
        purpose=purpose,  # pyright: ignore[reportArgumentType] - checked by the service
        extra_headers={"Idempotency-Key": str(uuid.uuid4())},
    )
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    record.write_text(json.dumps({"upload_id": upload.id, "path": str(path.absolute())}), "utf-8")
    return upload


def _send_parts(
    client: OpenAI, upload: Upload, path: Path, size: int, advance: Callable[[int], None]
) -> list[str]:
    """Sends the parts that have not arrived; returns the ids of all parts, in order."""
    arrived, lock = _arrived(upload), Lock()
    has_urls = Event()
    has_urls.set()

    def send(offset: int) -> str:
        content = os.pread(descriptor, PART_BYTES, offset)
        sha256 = hashlib.sha256(content).hexdigest()
        with lock:
            part_id = arrived[sha256].pop() if arrived[sha256] else None
        if part_id is None and has_urls.is_set():
            part_id = _put_part(client, upload, content, sha256, offset)
            if part_id is None:
                has_urls.clear()
        if part_id is None:
            part = client.uploads.parts.create(
                upload.id,
                data=(path.name, content),
                extra_headers={"Idempotency-Key": f"{upload.id} {offset} {sha256}"},
            )
            part_id = part.id
        advance(len(content))
        return part_id

    descriptor = os.open(path, os.O_RDONLY)
    executor = ThreadPoolExecutor(_AT_ONCE)
    try:
        return list(executor.map(send, range(0, size, PART_BYTES)))
    finally:
        executor.shutdown(cancel_futures=True)
        os.close(descriptor)


def _put_part(client: OpenAI, upload: Upload, content: bytes, sha256: str, offset: int) -> str | None:
    """Puts a part straight into the service's bucket, and returns its id; None if that cannot be done."""
    import httpx2  # noqa: PLC0415 - takes time to import
    from openai import NotFoundError  # noqa: PLC0415 - as above

    try:
        announced = cast(
            "dict[str, Any]",
            client.post(
                f"/uploads/{upload.id}/parts/signed",
                body={"bytes": len(content), "sha256": sha256},
                cast_to=object,
                options={"headers": {"Idempotency-Key": f"{upload.id} {offset} {sha256} direct"}},
            ),
        )
        timeout = httpx2.Timeout(_PUT_SECONDS, connect=_CONNECT_SECONDS)
        # Azure requires the header, and the others ignore it.
        blob = {"x-ms-blob-type": "BlockBlob"}
        httpx2.put(announced["url"], content=content, headers=blob, timeout=timeout).raise_for_status()
    except (NotFoundError, httpx2.HTTPError):  # it has no bucket, or one that cannot be reached from here
        return None
    return announced["id"]


def _arrived(upload: Upload) -> dict[str, list[str]]:
    """Returns the ids of the parts that have arrived, by their SHA-256."""
    parts: list[dict[str, Any]] = (upload.model_extra or {}).get("parts") or []
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for part in parts:
        ids[part["sha256"]].append(part["id"])
    return ids


def _record(client: OpenAI, path: Path, purpose: str) -> Path:
    """Returns the file that keeps the upload's id; each version of a file and each service has its own."""
    status = path.stat()
    name = [
        str(client.base_url),
        hashlib.sha256(client.api_key.encode()).hexdigest(),
        str(path.resolve()),
        status.st_size,
        status.st_mtime_ns,
        purpose,
    ]
    folder = user_state_path("toque") / "uploads"
    for old in folder.glob("*.json"):
        if old.stat().st_mtime < time.time() - _EXPIRY_SECONDS:
            old.unlink(missing_ok=True)
    return folder / f"{hashlib.sha256(json.dumps(name).encode()).hexdigest()}.json"


@contextmanager
def _progress(path: Path, size: int) -> Generator[Callable[[int], None]]:
    """Shows a progress bar on a terminal; yields a function that advances it by a number of bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(f"Uploading {path.name}", total=size)
        yield lambda count: progress.advance(task, count)
