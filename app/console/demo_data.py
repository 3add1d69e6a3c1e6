"""The demo's dataset, uploaded with one click."""

from __future__ import annotations

from app.context import Context
from app.core.database import Database
from app.core.idempotency import IdempotentRequest
from app.demo.house_style import HOUSE_STYLE
from app.files import service as files_service
from app.files.models import File

_FILES = {"demo-training.jsonl": HOUSE_STYLE.training_file, "demo-heldout.jsonl": HOUSE_STYLE.heldout_file}


def add(database: Database, context: Context) -> list[File]:
    """Upload the demo's examples: those to train on, and those that are held out for a comparison.

    Raises:
        QuotaExceededError: the project stores too much.
    """
    creating = IdempotentRequest(context.project_id, None, retry_count=None, is_abandoned=lambda: False)
    files: list[File] = []
    for name, path in _FILES.items():
        with context.storage.incoming() as incoming:
            incoming.write(path.read_bytes())
            fields = {"purpose": "fine-tune"}
            files.append(files_service.create_file(database, context, creating, incoming, name, fields))
    return files
