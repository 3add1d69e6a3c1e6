"""An engine that refuses a model: callers learn why from the first request on, and nobody else is harmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from app.auth.models import Project
from app.completions.models import Engine
from app.core.database import Database
from app.models.adapters.models import Adapter
from app.models.adapters.service import quarantine
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database

CHAT = "/v1/chat/completions"
REASON = "its rank is 64; up to 32 can be served"
NAMES = {kind: f"ft:{BASE_MODEL}:default::{kind}" for kind in ("bad", "good")}


@pytest.fixture(autouse=True)
def adapters(database: Database) -> None:
    with database.writer() as session:
        project = session.scalars(select(Project.id).where(Project.name == "default")).one()
        for name in NAMES.values():
            session.add(Adapter(name=name, project_id=project, base_model=BASE_MODEL, storage_key="none"))


def ask(http: httpx2.Client, model: str, **fields: Any) -> tuple[int, dict[str, Any], httpx2.Response]:
    response = http.post(CHAT, json=ASK | {"model": model} | fields)
    return response.status_code, response.json()["error"], response


def replica(database: Database) -> str:
    with database.reader() as session:
        return session.scalars(select(Engine.id)).one()


def quarantining(database: Database) -> Callable[[], None]:
    def happen() -> None:
        with database.writer() as session:
            quarantine(session, NAMES["bad"], REASON)

    return happen


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_request_learns_of_the_quarantine(
    http: httpx2.Client,
    database: Database,
    engine: EngineStandIn,
    stream: bool,
) -> None:
    assert (
        http.post(CHAT, json=ASK | {"model": NAMES["bad"], "stream": False}).status_code == 200
    )  # known now
    engine.behaviour, engine.on_request = "refuse", quarantining(database)
    status, error, response = ask(http, NAMES["bad"], stream=stream)
    assert (status, error["code"], error["param"]) == (424, "model_quarantined", "model")
    assert REASON in error["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-toque-replica"] == replica(database), "it is the one that refused"
    assert "x-toque-queue-ms" not in response.headers
    asked = len(engine.bodies)
    status, error, response = ask(http, NAMES["bad"], stream=stream)
    assert (status, error["code"]) == (424, "model_quarantined")
    assert "x-toque-replica" not in response.headers, "nobody was asked"
    assert len(engine.bodies) == asked


def test_a_model_that_cannot_be_loaded_now_may_be_asked_again(
    http: httpx2.Client,
    database: Database,
    engine: EngineStandIn,
) -> None:
    engine.behaviour = "refuse"
    engine.refusal = f"LoRA adapter '{NAMES['bad']}' was found but could not be loaded."
    status, error, response = ask(http, NAMES["bad"])
    assert (status, error["code"]) == (503, "model_not_loaded")
    assert int(response.headers["retry-after"]) > 0
    engine.on_request = quarantining(database)
    assert ask(http, NAMES["bad"])[:2][1]["code"] == "model_quarantined"


def test_a_bad_request_stays_one(
    http: httpx2.Client,
    database: Database,
    engine: EngineStandIn,
) -> None:
    engine.behaviour, engine.on_request = "refuse", quarantining(database)
    for model in (NAMES["good"], BASE_MODEL):
        status, error, response = ask(http, model)
        assert (status, error["code"]) == (400, "context_length_exceeded")
        assert response.headers["x-toque-replica"] == replica(database)


def test_a_model_that_is_deleted_meanwhile_is_gone(
    http: httpx2.Client,
    database: Database,
    engine: EngineStandIn,
) -> None:
    def delete() -> None:
        with database.writer() as session:
            session.get_one(Adapter, NAMES["bad"]).deleted_at = time.time()

    engine.behaviour = "unknown"
    assert ask(http, NAMES["bad"])[:2][1]["code"] == "model_not_loaded", "its files are away, perhaps"
    engine.on_request = delete
    status, error, _ = ask(http, NAMES["bad"])
    assert (status, error["code"]) == (404, "model_not_found")
