"""A deployment in which everything that the metrics speak of has happened once."""

from __future__ import annotations

import httpx2

from app.core.database import Database
from tests.support.engine_stand_in import ASK
from tests.support.job_rows import add_job
from tests.support.metrics import await_metrics
from tests.support.worker_rows import add_worker


def prepare(database: Database) -> None:
    """A worker that has just reported itself, and a job that has succeeded."""
    add_worker(database)
    with database.writer() as session:
        add_job(session)


def send(http: httpx2.Client) -> None:
    """Requests of each kind: some that are answered, by a stream or at once, and one that is not."""
    http.post("/v1/chat/completions", json=ASK).raise_for_status()
    http.post("/v1/chat/completions", json=ASK | {"stream": True}).raise_for_status()
    http.get("/v1/models/nothing")


def send_until_engines_are_known(http: httpx2.Client) -> None:
    """Requests as above, until the metrics have the engine, too."""
    send(http)
    await_metrics(http, lambda found: "vllm:kv_cache_usage_perc" in repr(found), "the engine's load")
