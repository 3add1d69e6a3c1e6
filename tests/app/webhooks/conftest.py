"""A service that may deliver to this machine, and an endpoint to deliver to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from app.auth.models import Project
from app.core.database import Database
from app.core.settings import Settings
from app.webhooks import client as webhook_client
from app.webhooks import outbox
from tests.support.webhook_receiver import Receiver, run_receiver

Endpoint = dict[str, Any]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With heartbeats, and so leases, that a busy machine cannot miss: what expires is sent once more."""
    local = [ip_network("127.0.0.0/8")]
    return settings.model_copy(
        update={"webhook_private_networks": local, "poll_seconds": 0.05, "heartbeat_seconds": 20.0}
    )


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is late on a busy machine would be another attempt."""
    monkeypatch.setattr(webhook_client, "TIMEOUT_SECONDS", 60.0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


@pytest.fixture
def add_endpoint(http: httpx2.Client) -> Callable[..., Endpoint]:
    """Adds an endpoint that is told of moved aliases, or of other events."""

    def add(url: str, *event_types: str) -> Endpoint:
        asked = {"name": "ours", "url": url, "event_types": list(event_types or ["alias.moved"])}
        created = http.post("/v1/webhook_endpoints", json=asked)
        assert created.status_code == 200, created.text
        return created.json()

    return add


@pytest.fixture
def project_id(database: Database) -> str:
    """The first project's id."""
    with database.reader() as session:
        return session.scalars(select(Project.id).where(Project.name == "default")).one()


@pytest.fixture
def write_event(database: Database, project_id: str) -> Callable[[int], None]:
    """Writes an event into the outbox; its number tells it from others."""

    def write(number: int) -> None:
        with database.writer() as session:
            outbox.add_event(session, project_id, "alias.moved", {"id": "chat", "number": number})

    return write
