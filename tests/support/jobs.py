"""Files and fine-tuning jobs through the official client."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from tests.support.service import BASE_MODEL
from tests.support.training_files import training_bytes


def upload(client: OpenAI, content: bytes | None = None, purpose: Any = "fine-tune") -> str:
    return client.files.create(file=("train.jsonl", content or training_bytes()), purpose=purpose).id


def create(client: OpenAI, **parameters: Any):
    parameters = {
        "model": BASE_MODEL,
        "training_file": parameters.pop("training_file", None) or upload(client),
    } | parameters
    return client.fine_tuning.jobs.create(**parameters)
