"""A dataset of any size, uploaded and checked by the service itself."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2

from app.demo.house_style import TRAINING_FILE

_QUESTION = b'"role": "user", "content": "'


def write_dataset(path: Path, megabytes: int) -> None:
    """Writes the demo's examples again and again, each time with another number before the questions."""
    block = TRAINING_FILE.read_bytes()
    assert _QUESTION in block
    with path.open("wb", buffering=2**20) as file:
        number = 0
        while file.tell() < megabytes * 10**6:
            file.write(block.replace(_QUESTION, _QUESTION + b"%d. " % number))
            number += 1


def upload(api: httpx2.Client, path: Path) -> str:
    """Uploads the dataset; returns its id."""
    with path.open("rb") as file:
        answer = api.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": file}, timeout=600)
    return answer.raise_for_status().json()["id"]


def await_check(api: httpx2.Client, file_id: str) -> float:
    """Waits until the service has checked the file; returns the seconds."""
    began = time.monotonic()
    while (status := api.get(f"/v1/files/{file_id}").raise_for_status().json()["status"]) == "uploaded":
        time.sleep(1)
    assert status == "processed", status
    return time.monotonic() - began
