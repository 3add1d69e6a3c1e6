"""A worker on a machine of its own: crashes at every point, and a bucket that is away while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.models import Adapter
from app.orphans import find_orphans
from app.storage import open_storage
from tests.s3.conftest import elsewhere
from tests.s3.server import S3Server
from tests.support.crashes import CRASH_POINTS, train_through_crash
from tests.support.tiny_model import TINY, write_tiny_model
from tests.support.waiting import wait_until
from tests.support.worker import WorkerProcess, check_record, create, ended, run_worker, steps_of, weights

POINTS = [*CRASH_POINTS, "attempt_files.before_publish", "attempt_files.after_publish"]


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """What an undisturbed job gives."""
    return {}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / TINY)


@pytest.fixture
def settings(settings: Settings, tiny: Path) -> Settings:
    entry = BaseModelEntry(name=TINY, source=str(tiny), context=512)
    return settings.model_copy(update={"base_models": [entry], "lease_seconds": 2.0, "retry_seconds": 0.1})


@contextmanager
def worker_elsewhere(settings: Settings, folder: Path, **environment: str) -> Iterator[WorkerProcess]:
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir()))
    own = elsewhere(settings, folder / f"machine-{number}")
    with run_worker(own, folder, TOQUE_STORAGE_URL=settings.storage_url, **environment) as worker:
        yield worker


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_changes_nothing(
    point: str,
    references: dict[str, Any],
    client: OpenAI,
    settings: Settings,
    database: Database,
    tmp_path: Path,
) -> None:
    """Each attempt is on another machine, which has nothing but bucket and database."""
    if not references:
        with worker_elsewhere(settings, tmp_path / "first"):
            job = ended(client, create(client).id)
        references["losses"] = check_record(client, job)
        references["weights"] = weights(database, settings, job.fine_tuned_model)

    start = partial(worker_elsewhere, settings, tmp_path / "workers")
    done = train_through_crash(client, create(client).id, start, point, tmp_path / "reached")
    assert check_record(client, done) == references["losses"]
    found, expected = weights(database, settings, done.fine_tuned_model or ""), references["weights"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with database.reader() as session:
        assert find_orphans(session, open_storage(settings)).missing == []
        assert [row.quarantine_reason for row in session.query(Adapter)] == [None] * session.query(
            Adapter
        ).count()


def test_a_bucket_that_is_away_makes_a_worker_wait(
    server: S3Server, client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    job = create(client, hyperparameters={"n_epochs": 40})
    with worker_elsewhere(settings, tmp_path / "workers"):
        wait_until(lambda: steps_of(client, job.id), "it trains", seconds=120)
        with server.away():
            log = tmp_path / "workers/worker.log"
            wait_until(lambda: "cannot be used now" in log.read_text(), "the worker notices", seconds=120)
            assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        done = ended(client, job.id)
    assert done.status == "succeeded"
    assert not [
        event
        for event in client.fine_tuning.jobs.list_events(job.id).data
        if event.level != "info" and "engine" not in event.message
    ], "it went on in the same attempt"
    assert weights(database, settings, done.fine_tuned_model)
