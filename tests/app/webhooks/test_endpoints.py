"""Webhook endpoints through OpenAI's own client, and what its types do not have."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.webhooks import outbox
from app.webhooks.models import WebhookDelivery, WebhookEndpoint
from app.webhooks.service import MAX_ENDPOINTS
from tests.support.service import OTHER_KEY, Service, run_service
from tests.support.webhook_receiver import Receiver

EVENTS: Any = ["batch.completed", "fine_tuning.job.succeeded"]
URL = "https://example.com/hook"


def test_its_life(client: OpenAI) -> None:
    created = client.webhooks.create(name="ours", url=URL, event_types=EVENTS)
    assert created.signing_secret.startswith("whsec_")
    assert created.signing_secret_hint == f"…{created.signing_secret[-4:]}"
    assert (created.name, created.url, created.event_types) == ("ours", URL, EVENTS)
    shown = client.webhooks.retrieve(created.id)
    assert shown.to_dict() == {
        name: value for name, value in created.to_dict().items() if name != "signing_secret"
    }
    changed = client.webhooks.update(created.id, name="theirs", event_types=["batch.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("theirs", URL, ["batch.failed"])
    second = client.webhooks.create(name="second", url=URL, event_types=EVENTS)
    assert [each.id for each in client.webhooks.list(limit=1)] == [second.id, created.id]
    deleted = client.webhooks.delete(created.id)
    assert (deleted.id, deleted.deleted) == (created.id, True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.webhooks.retrieve(created.id)
    assert caught.value.code == "webhook_endpoint_not_found"
    assert "alias.moved" in client.webhooks.event_types.list().data


def test_another_project_sees_nothing_of_it(
    client: OpenAI,
    other_client: OpenAI,
    service: Service,
    receiver: Receiver,
    write_event: Callable[[int], None],
    add_endpoint: Callable[..., dict[str, Any]],
) -> None:
    endpoint = add_endpoint(receiver.url)["id"]
    write_event(1)
    assert list(other_client.webhooks.list()) == []
    for attempt in (
        lambda: other_client.webhooks.retrieve(endpoint),
        lambda: other_client.webhooks.update(endpoint, name="mine"),
        lambda: other_client.webhooks.rotate_secret(endpoint),
        lambda: other_client.webhooks.test(endpoint, event_type="batch.completed"),
        lambda: other_client.webhooks.delete(endpoint),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    with service.http() as http, service.http(OTHER_KEY) as other:
        [delivery] = http.get("/v1/webhooks/deliveries").json()["data"]
        assert other.get("/v1/webhooks/deliveries").json()["data"] == []
        assert other.get(f"/v1/webhooks/deliveries?webhook_endpoint_id={endpoint}").json()["data"] == []
        path = f"/v1/webhooks/deliveries/{delivery['id']}"
        assert (other.get(path).status_code, other.post(f"{path}/replay").status_code) == (404, 404)
    assert client.webhooks.retrieve(endpoint).name == "ours"


NOWHERE = [
    "ftp://example.com/",
    "https://",
    "https:///path",
    "https://user:word@example.com/",
    "https://example.com:99999/",
    "https://169.254.169.254/latest/meta-data",
    "https://10.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[fe80::1%25eth0]/",
    "https://exa mple.com/",
    "https://example.com/\n",
    "https://" + "a" * 3000,
]


@pytest.mark.one_database
def test_where_nothing_can_be_delivered(http: httpx2.Client) -> None:
    for url in NOWHERE:
        asked = {"name": "ours", "url": url, "event_types": EVENTS}
        error = http.post("/v1/webhook_endpoints", json=asked)
        assert error.status_code == 400, error.text
        assert error.json()["error"]["param"] == "url"


@pytest.mark.one_database
def test_plain_http_is_for_private_networks(settings: Settings, database: object) -> None:
    none_allowed = settings.model_copy(update={"webhook_private_networks": []})
    with run_service(none_allowed) as service, service.client() as client:
        for url in ("http://example.com/", "https://127.0.0.1/"):
            with pytest.raises(openai.BadRequestError) as caught:
                client.webhooks.create(name="ours", url=url, event_types=EVENTS)
            assert (caught.value.code, caught.value.param) == ("invalid_url", "url")


@pytest.mark.one_database
def test_events_that_do_not_happen_here_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.webhooks.create(name="ours", url=URL, event_types=["video.completed"])
    assert caught.value.param == "event_types[0]"
    assert "batch.completed" in caught.value.message


@pytest.mark.one_database
def test_a_project_has_so_many(client: OpenAI, other_client: OpenAI) -> None:
    for _ in range(MAX_ENDPOINTS):
        client.webhooks.create(name="ours", url=URL, event_types=EVENTS)
    with pytest.raises(openai.BadRequestError) as caught:
        client.webhooks.create(name="ours", url=URL, event_types=EVENTS)
    assert caught.value.code == "too_many_webhook_endpoints"
    other_client.webhooks.create(name="theirs", url=URL, event_types=EVENTS)


@pytest.mark.one_database
def test_a_retry_makes_no_second_secret(http: httpx2.Client) -> None:
    key = {"idempotency-key": "k"}
    asked = {"name": "ours", "url": URL, "event_types": EVENTS}
    created, again = (http.post("/v1/webhook_endpoints", json=asked, headers=key).json() for _ in range(2))
    assert created == again
    path = f"/v1/webhook_endpoints/{created['id']}/rotate_secret"
    key = {"idempotency-key": "r"}
    rotated, again = (http.post(path, headers=key).json() for _ in range(2))
    assert rotated == again
    assert rotated["signing_secret"] != created["signing_secret"]


@pytest.mark.one_database
def test_a_sample_is_sent_at_once(
    client: OpenAI, receiver: Receiver, add_endpoint: Callable[..., dict[str, Any]]
) -> None:
    endpoint = add_endpoint(receiver.url)
    receiver.answer = lambda _: 418
    result = client.webhooks.test(endpoint["id"], event_type="batch.completed")
    assert (result.status_code, result.success, result.event_type) == (418, True, "batch.completed")
    [sample] = receiver.received
    event = sample.unwrap(endpoint["signing_secret"])
    assert (event.type, event.data.id) == ("batch.completed", "batch_abc123")


@pytest.mark.one_database
def test_a_sample_that_nobody_takes(client: OpenAI, add_endpoint: Callable[..., dict[str, Any]]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = add_endpoint(f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        with pytest.raises(openai.APIStatusError) as caught:
            client.webhooks.test(endpoint["id"], event_type="batch.completed")
    assert (caught.value.status_code, caught.value.code) == (424, "webhook_endpoint_unreachable")
    assert "refused" in caught.value.message


def test_those_of_an_archived_project_end_with_it(
    http: httpx2.Client, service: Service, database: Database
) -> None:
    with service.http(OTHER_KEY) as other:
        created = other.post(
            "/v1/webhook_endpoints",
            json={"name": "theirs", "url": "https://example.invalid/", "event_types": ["alias.moved"]},
        ).json()
    with database.writer() as session:
        endpoint = session.get_one(WebhookEndpoint, created["id"])
        endpoint.not_before = 1e12  # nothing is sent before the project is archived
        project_id = endpoint.project_id
        outbox.add_event(session, project_id, "alias.moved", {"id": "before"})
    assert http.post(f"/v1/organization/projects/{project_id}/archive").status_code == 200
    with database.writer() as session:
        outbox.add_event(session, project_id, "alias.moved", {"id": "after"})
    with database.reader() as session:
        [delivery] = session.scalars(select(WebhookDelivery)).all()
        assert not session.get_one(WebhookEndpoint, created["id"]).enabled
    assert (delivery.data, delivery.status) == ({"id": "before"}, "failed")
    assert delivery.error == "The project was archived."
