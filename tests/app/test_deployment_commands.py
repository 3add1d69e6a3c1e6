"""`toque workers` and `toque db check`: what an operator sees without the service, on both databases."""

from __future__ import annotations

import json
import os
import time

import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning import worker_registry
from app.fine_tuning.models import Worker
from app.storage import open_storage
from app.storage.base import object_key
from tests.support.command import run
from tests.support.training_files import training_bytes


def test_workers_report_themselves(settings: Settings, database: Database) -> None:
    for number, silent in enumerate((0.0, 31.0)):
        with database.writer() as session:
            worker = Worker(
                id=f"worker_{number}",
                hostname="kitchen",
                pid=40 + number,
                device="cuda",
                version="0.1.0",
                started_at=time.time() + number,
                memory_bytes=3 * 2**30,
                job_id="ftjob-soup" if number == 0 else None,
            )
            worker_registry.report(session, worker)
        with database.writer() as session:
            session.get_one(Worker, worker.id).heartbeat_at -= silent

    table = run(settings, "workers").stdout.splitlines()
    shown = [line.split() for line in table[1:]]
    assert [words[:2] for words in shown] == [["worker_0", "kitchen:40"], ["worker_1", "kitchen:41"]]
    assert shown[0][3:6] == ["3.0", "GiB", "ftjob-soup"]
    assert [words[-1] for words in shown] == ["alive", "silent"]

    alive, silent = json.loads(run(settings, "workers", "--json").stdout)
    assert alive["heartbeat_age_seconds"] < 10
    assert silent["heartbeat_age_seconds"] >= 31
    assert (alive["device"], alive["job"], alive["version"], alive["alive"]) == (
        "cuda",
        "ftjob-soup",
        "0.1.0",
        True,
    )
    assert (silent["job"], silent["alive"]) == (None, False)


def test_rows_and_files_are_compared(settings: Settings, database: Database, client: OpenAI) -> None:
    kept, lost = (
        client.files.create(file=("t.jsonl", training_bytes(n)), purpose="fine-tune").to_dict()["sha256"]
        for n in (12, 13)
    )
    assert run(settings, "db", "check").exit_code == 0
    storage = open_storage(settings)
    (settings.storage_root / object_key(lost)).unlink()
    storage.write("files/file-nobodys", b"left by a crash")
    day_ago = time.time() - 86400 - 60
    os.utime(settings.storage_root / "files/file-nobodys", (day_ago, day_ago))
    storage.write("files/file-young", b"its row may come")

    found = run(settings, "db", "check", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout) == {
        "rows_without_files": [object_key(lost)],
        "files_without_rows": ["files/file-nobodys"],
    }
    shown = run(settings, "db", "check", "--older-than", "0").stdout
    assert [line.rsplit(maxsplit=1)[-1] for line in shown.splitlines()] == [
        "1",
        "2",
        "KEY",
        object_key(lost),
        "files/file-nobodys",
        "files/file-young",
    ]
    assert kept not in shown


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("command", [["workers"], ["engines"], ["db", "check"]])
def test_a_database_that_is_not_there_is_one_line(settings: Settings, command: list[str]) -> None:
    nowhere = settings.model_copy(update={"database_url": "sqlite:////nowhere/toque.db"})
    refused = run(nowhere, *command)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: the database cannot be used")
    assert refused.stderr.count("\n") == 1
