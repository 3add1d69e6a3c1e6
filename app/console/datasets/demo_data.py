"""The demo's data as a file of the project, for whoever has none yet."""

from __future__ import annotations

from app.context import Context
from app.core.database import Database
from app.demo.house_style import TRAINING_FILE
from app.files import service as files_service
from app.files.models import File
from app.quotas.stored_bytes import require_bytes

FILENAME = "larkspoon-help-desk.jsonl"


def add_demo_data(database: Database, context: Context) -> File:
    """Keep the demo's training data as a file of the project, as if it had been uploaded.

    Raises:
        QuotaExceededError: the project stores too much.
    """
    with context.storage.incoming() as incoming:
        incoming.write(TRAINING_FILE.read_bytes())
        incoming.finish()
        with database.writer() as session:
            require_bytes(session, context.project_id, incoming.bytes, "file")
            return files_service.keep_file(session, context, incoming, FILENAME, "fine-tune")
