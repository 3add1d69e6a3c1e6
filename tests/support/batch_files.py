"""Input files of batches, and what comes back."""

from __future__ import annotations

import json
from typing import Any

from openai import OpenAI
from openai.types import Batch

from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
FINAL = ("failed", "completed", "expired", "cancelled")


def question(number: int) -> str:
    return f"What is in pot number {number}?"


def line(number: int, *, url: str = CHAT, body: dict[str, Any] | None = None, **replaced: Any) -> str:
    chat = {"model": BASE_MODEL, "messages": [{"role": "user", "content": question(number)}]}
    request = {"custom_id": f"pot-{number}", "method": "POST", "url": url, "body": chat | (body or {})}
    return json.dumps(request | replaced) + "\n"


def lines(numbers: range, **more: Any) -> str:
    return "".join(line(number, **more) for number in numbers)


def create(client: OpenAI, content: str | bytes, endpoint: Any = CHAT, **more: Any) -> Batch:
    data = content.encode() if isinstance(content, str) else content
    file = client.files.create(file=("requests.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def ended(client: OpenAI, batch_id: str, seconds: float = 120) -> Batch:
    """The batch, once it has ended."""

    def look() -> Batch | None:
        seen = client.batches.retrieve(batch_id)
        return seen if seen.status in FINAL else None

    found: Batch = wait_until(look, "the batch ends", seconds=seconds)
    return found


def content(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output file or an error file."""
    assert file_id is not None
    text = client.files.content(file_id).text
    assert text.endswith("\n")
    return [json.loads(each) for each in text.split("\n")[:-1]]
