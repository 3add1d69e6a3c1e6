"""openai-python: a batch from its file to its output."""

from __future__ import annotations

import json
import os
import time

from openai import OpenAI

client = OpenAI()
BASE = os.environ["BASE_MODEL"]


def test_a_batch_answers_every_request_once_and_reports_errors_apart() -> None:
    requests = [
        {
            "custom_id": f"question-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": BASE,
                "messages": [{"role": "user", "content": f"What is {number} plus 1?"}],
                "max_tokens": 4,
            },
        }
        for number in range(4)
    ]
    data = "".join(json.dumps(request) + "\n" for request in requests)
    file = client.files.create(file=("requests.jsonl", data.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"client": "openai-python"},
    )
    deadline = time.monotonic() + 200
    while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < deadline:
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (4, 4)
    assert batch.output_file_id is not None
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == [request["custom_id"] for request in requests]
    assert {line["response"]["status_code"] for line in lines} == {200}
    assert batch.id in [each.id for each in client.batches.list(limit=5)]


def test_a_batch_is_cancelled() -> None:
    request = {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": BASE, "prompt": "Once upon a time", "max_tokens": 200},
    }
    file = client.files.create(file=("one.jsonl", (json.dumps(request) + "\n").encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
