"""What endpoints are sent: signed, in order, at least once, and no more than they want."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from openai import OpenAI
from sqlalchemy import select, update
from tenacity import wait_fixed, wait_none

from app.core.database import Database
from app.core.settings import Settings
from app.webhooks import client as webhook_client
from app.webhooks import queue
from app.webhooks.models import WebhookDelivery, WebhookEndpoint
from tests.support.api_process import api_process
from tests.support.service import run_service
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import Received, Receiver, run_receiver

AddEndpoint = Callable[..., dict[str, Any]]
WriteEvent = Callable[[int], None]


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "BACK_OFF", wait_none())


def deliveries(http: httpx2.Client, **query: str) -> list[dict[str, Any]]:
    response = http.get("/v1/webhooks/deliveries", params=query)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def await_ended(http: httpx2.Client, count: int) -> list[dict[str, Any]]:
    """The deliveries, newest first, once none of so many waits any more."""

    def ended() -> list[dict[str, Any]]:
        found = deliveries(http)
        return found if len(found) == count and all(each["status"] != "pending" for each in found) else []

    return wait_until(ended, "every delivery has ended")


def test_openais_client_verifies_it(
    http: httpx2.Client, receiver: Receiver, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    endpoint = add_endpoint(receiver.url)
    write_event(1)
    [delivery] = await_ended(http, 1)
    [request] = receiver.received
    event = request.unwrap(endpoint["signing_secret"])
    assert event.to_dict() == delivery["event"]
    assert (event.type, event.id) == ("alias.moved", request.headers["webhook-id"])
    assert delivery["event"]["object"] == "event"
    assert delivery["event"]["data"] == {"id": "chat", "number": 1}
    assert (delivery["status"], delivery["attempts"], delivery["status_code"]) == ("succeeded", 1, 200)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        request.unwrap("whsec_" + "A" * 40)
    changed = Received(request.headers, request.body.replace(b"chat", b"cafe"))
    with pytest.raises(openai.InvalidWebhookSignatureError):
        changed.unwrap(endpoint["signing_secret"])


@pytest.mark.one_database
def test_secrets_overlap_when_they_are_rotated(
    client: OpenAI,
    http: httpx2.Client,
    database: Database,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
) -> None:
    first = add_endpoint(receiver.url)
    second = client.webhooks.rotate_secret(first["id"], keep_old_secret_active_for_24_hours=True)
    write_event(1)
    await_ended(http, 1)
    for secret in (first["signing_secret"], second.signing_secret):
        assert receiver.received[0].unwrap(secret).type == "alias.moved"
    with database.writer() as session:  # as if the day were over
        session.execute(update(WebhookEndpoint).values(previous_secret_until=time.time() - 1))
    write_event(2)
    await_ended(http, 2)
    third = client.webhooks.rotate_secret(first["id"])
    write_event(3)
    await_ended(http, 3)
    for request, secret, old in (
        (receiver.received[1], second.signing_secret, first["signing_secret"]),
        (receiver.received[2], third.signing_secret, second.signing_secret),
    ):
        assert request.unwrap(secret).type == "alias.moved"
        with pytest.raises(openai.InvalidWebhookSignatureError):
            request.unwrap(old)


@pytest.mark.usefixtures("no_back_off")
def test_a_later_event_waits_for_an_earlier_one(
    http: httpx2.Client, receiver: Receiver, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    add_endpoint(receiver.url)
    receiver.answer = lambda request: 500 if len(receiver.received) <= 3 else 200
    for number in range(5):
        write_event(number)
    ended = await_ended(http, 5)
    assert receiver.numbers == [0, 0, 0, 0, 1, 2, 3, 4]
    assert len({each.headers["webhook-id"] for each in receiver.received[:4]}) == 1
    assert [each["attempts"] for each in reversed(ended)] == [4, 1, 1, 1, 1]


@pytest.mark.one_database
def test_an_endpoint_that_fails_is_left_alone_for_longer_each_time(
    http: httpx2.Client,
    database: Database,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
) -> None:
    endpoint = add_endpoint(receiver.url)
    receiver.answer = lambda _: (500, {}, b"Out of soup.\x00" + b"x" * 5000)
    began = time.time()
    write_event(1)
    wait_until(lambda: deliveries(http)[0]["attempts"] == 1, "it was tried")
    [delivery] = deliveries(http)
    assert (delivery["status"], delivery["status_code"], delivery["error"]) == ("pending", 500, None)
    assert delivery["response_body"].startswith("Out of soup.␀x")
    assert len(delivery["response_body"]) == 500
    with database.writer() as session:
        row = session.get_one(WebhookEndpoint, endpoint["id"])
        assert (row.failures, began + 10 <= row.not_before < time.time() + 21) == (1, True)
        row.not_before, row.failures = 0.0, 30
    wait_until(lambda: deliveries(http)[0]["attempts"] == 2, "it was tried again")
    with database.reader() as session:
        row = session.get_one(WebhookEndpoint, endpoint["id"])
        assert (row.failures, row.not_before - time.time() < 4 * 3600 + 1) == (31, True)
    receiver.answer = lambda _: 204
    changed = http.post(f"/v1/webhook_endpoints/{endpoint['id']}", json={"name": "mended"})
    assert changed.json()["failures"] == 0
    assert await_ended(http, 1)[0]["status"] == "succeeded", "a change has it tried at once"


def test_back_off_doubles_and_is_bounded() -> None:
    pauses = [[queue._back_off(failures) for _ in range(50)] for failures in (1, 2, 5, 12, 5000)]
    for some, (least, most) in zip(
        pauses, [(10, 20), (10, 40), (10, 320), (10, 14_400), (10, 14_400)], strict=True
    ):
        assert all(least <= pause <= most for pause in some)
        assert len(set(some)) > 40, "it has jitter"
    assert max(pauses[-1]) > 7200


@pytest.mark.usefixtures("no_back_off")
def test_it_is_given_up_after_three_days(
    http: httpx2.Client,
    database: Database,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
) -> None:
    add_endpoint(receiver.url)
    receiver.answer = lambda request: 500 if request.number == 1 else 200
    write_event(1)
    write_event(2)
    wait_until(lambda: len(receiver.received) > 2, "it was tried several times")
    with database.writer() as session:
        first = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq)).first()
        assert first is not None
        first.created_at -= 3 * 86400
    second, first = await_ended(http, 2)
    assert (first["status"], second["status"]) == ("failed", "succeeded")
    assert receiver.numbers[-1] == 2
    assert [each["id"] for each in deliveries(http, status="failed")] == [first["id"]]


@pytest.mark.usefixtures("no_back_off")
def test_what_waits_behind_it_is_given_up_as_well(
    http: httpx2.Client,
    database: Database,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
) -> None:
    add_endpoint(receiver.url)
    receiver.answer = lambda request: 200 if request.number == 4 else 500
    for number in (1, 2, 3, 4):
        write_event(number)
    wait_until(lambda: len(receiver.received) > 2, "the first was tried several times")
    with database.writer() as session:
        for waiting in session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq).limit(3)):
            waiting.created_at -= 3 * 86400
    fourth, third, second, first = await_ended(http, 4)
    assert fourth["status"] == "succeeded"
    assert [each["status"] for each in (first, second, third)] == ["failed"] * 3
    assert {second["attempts"], third["attempts"]} == {0}
    assert "earlier event" in second["error"]


@pytest.mark.one_database
def test_redirects_are_not_followed(
    http: httpx2.Client, receiver: Receiver, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    with run_receiver() as elsewhere:
        receiver.answer = lambda _: (307, {"location": elsewhere.url}, b"")
        add_endpoint(receiver.url)
        write_event(1)
        wait_until(lambda: deliveries(http)[0]["attempts"] == 1, "it was tried")
    assert elsewhere.received == []
    assert deliveries(http)[0]["status_code"] == 307


def test_an_endpoint_that_is_gone_is_disabled(
    client: OpenAI,
    http: httpx2.Client,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
) -> None:
    endpoint = add_endpoint(receiver.url)
    wait = threading.Event()
    receiver.answer = lambda _: 410 if wait.wait(60) else 500
    write_event(1)
    write_event(2)
    wait.set()
    ended = await_ended(http, 2)
    assert [each["status"] for each in ended] == ["failed", "failed"]
    assert receiver.numbers == [1]
    assert client.webhooks.retrieve(endpoint["id"]).to_dict()["enabled"] is False
    write_event(3)
    assert len(deliveries(http)) == 2, "nothing is written for an endpoint that is disabled"
    path = f"/v1/webhooks/deliveries/{ended[0]['id']}/replay"
    assert http.post(path).json()["error"]["code"] == "webhook_endpoint_disabled"
    receiver.answer = lambda _: 200
    http.post(f"/v1/webhook_endpoints/{endpoint['id']}", json={"enabled": True})
    assert http.post(path).status_code == 200
    await_ended(http, 3)
    assert receiver.numbers == [1, 2]


@pytest.mark.parametrize("status", [500, 410])
def test_what_an_endpoint_answers_while_it_is_changed_does_not_count_against_it(
    http: httpx2.Client,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(queue, "BACK_OFF", wait_fixed(3600))
    is_changed = threading.Event()
    receiver.answer = lambda _: status if is_changed.wait(60) else 200
    path = f"/v1/webhook_endpoints/{add_endpoint(receiver.url)['id']}"
    write_event(1)
    wait_until(lambda: receiver.received, "it is asked")
    with run_receiver() as mended:
        assert http.post(path, json={"url": mended.url}).status_code == 200
        is_changed.set()
        [delivery] = await_ended(http, 1)
        assert (delivery["status"], delivery["attempts"]) == ("succeeded", 2)
        assert (receiver.numbers, mended.numbers) == ([1], [1])
    shown = http.get(path).json()
    assert (shown["enabled"], shown["failures"]) == (True, 0)


def test_a_replay_is_the_same_event_again(
    http: httpx2.Client, receiver: Receiver, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    add_endpoint(receiver.url)
    for number in (1, 2):
        write_event(number)
    first = await_ended(http, 2)[1]
    replayed = http.post(f"/v1/webhooks/deliveries/{first['id']}/replay").json()
    assert (replayed["status"], replayed["attempts"], replayed["event"]) == ("pending", 0, first["event"])
    await_ended(http, 3)
    assert receiver.numbers == [1, 2, 1]
    assert receiver.received[0].body == receiver.received[2].body
    assert receiver.received[0].headers["webhook-id"] == receiver.received[2].headers["webhook-id"]
    page = http.get("/v1/webhooks/deliveries", params={"limit": 2}).json()
    rest = http.get("/v1/webhooks/deliveries", params={"after": page["last_id"]}).json()
    assert (page["has_more"], rest["has_more"]) == (True, False)
    assert [each["event"]["data"]["number"] for each in page["data"] + rest["data"]] == [1, 2, 1]
    assert http.get(f"/v1/webhooks/deliveries/{first['id']}").json() == first
    assert deliveries(http, event_type="batch.failed") == []


@pytest.mark.one_database
def test_what_still_waits_is_not_replayed(
    http: httpx2.Client, receiver: Receiver, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    add_endpoint(receiver.url)
    receiver.answer = lambda _: 500
    write_event(1)
    [delivery] = deliveries(http)
    refused = http.post(f"/v1/webhooks/deliveries/{delivery['id']}/replay")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "webhook_delivery_pending")


@pytest.mark.one_database
def test_a_slow_endpoint_does_not_hold_up_the_others(
    http: httpx2.Client, receiver: Receiver, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    go_on = threading.Event()
    with run_receiver() as slow:
        slow.answer = lambda _: 200 if go_on.wait(60) else 500
        add_endpoint(slow.url)
        add_endpoint(receiver.url)
        for number in range(10):
            write_event(number)
        wait_until(lambda: len(receiver.received) == 10, "the other one has everything", seconds=50)
        wait_until(lambda: slow.received, "the slow one is asked")
        assert slow.numbers == [0]
        assert receiver.numbers == list(range(10))
        go_on.set()
        await_ended(http, 20)


@pytest.mark.one_database
def test_an_endpoint_has_so_long_to_answer(
    http: httpx2.Client,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook_client, "TIMEOUT_SECONDS", 0.2)
    go_on = threading.Event()
    receiver.answer = lambda _: 200 if go_on.wait(60) else 500
    add_endpoint(receiver.url)
    write_event(1)
    wait_until(lambda: deliveries(http)[0]["attempts"] == 1, "the time limit is over")
    [delivery] = deliveries(http)
    assert (delivery["status"], delivery["error"]) == ("pending", "There was no answer within 0.2 s.")
    go_on.set()


def test_a_process_that_is_killed_between_sending_and_recording(
    settings: Settings, database: Database, project_id: str, receiver: Receiver, write_event: WriteEvent
) -> None:
    go_on = threading.Event()
    receiver.answer = lambda _: 200 if go_on.wait(60) else 500
    with api_process(settings) as (process, client):
        events: Any = ["alias.moved"]
        endpoint = client.webhooks.create(name="ours", url=receiver.url, event_types=events)
        for number in range(3):
            write_event(number)
        wait_until(lambda: receiver.received, "the first is being sent", seconds=60)
        process.kill()
        process.wait()
    go_on.set()
    with database.writer() as session:  # rather than after a minute
        session.execute(update(WebhookEndpoint).values(lease_until=0.0))
    with run_service(settings) as service, service.http() as http:
        ended = await_ended(http, 3)
    assert [each["status"] for each in ended] == ["succeeded"] * 3
    assert receiver.numbers == [0, 0, 1, 2]
    first, again = receiver.received[:2]
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    assert first.body == again.body
    assert again.unwrap(endpoint.signing_secret).id == first.headers["webhook-id"]


@pytest.mark.one_database
def test_two_processes_share_the_endpoints_and_send_everything_once(
    settings: Settings, database: Database, receiver: Receiver, write_event: WriteEvent
) -> None:
    with run_service(settings) as first, run_service(settings), first.http() as http, run_receiver() as other:
        for url in (receiver.url, other.url):
            asked = {"name": "ours", "url": url, "event_types": ["alias.moved"]}
            assert http.post("/v1/webhook_endpoints", json=asked).status_code == 200
        for number in range(60):
            write_event(number)
        wait_until(lambda: not deliveries(http, status="pending"), "everything is delivered")
        assert receiver.numbers == other.numbers == list(range(60))


@pytest.mark.one_database
def test_deliveries_are_forgotten_after_thirty_days(
    http: httpx2.Client,
    database: Database,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_endpoint(receiver.url)
    write_event(1)
    write_event(2)
    await_ended(http, 2)
    with database.writer() as session:
        oldest = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq)).first()
        assert oldest is not None
        assert oldest.ended_at is not None
        oldest.ended_at -= 30 * 86400
    with database.writer() as session:
        assert not queue.delete_old(session)
    assert [each["event"]["data"]["number"] for each in deliveries(http)] == [2]
    monkeypatch.setattr(queue, "MOST_DELETED", 1)
    monkeypatch.setattr(queue, "KEPT_SECONDS", -60.0)
    with database.writer() as session:
        assert queue.delete_old(session)
    with database.writer() as session:
        assert not queue.delete_old(session)


def test_deleting_an_endpoint_deletes_what_waits_for_it(
    client: OpenAI,
    http: httpx2.Client,
    receiver: Receiver,
    add_endpoint: AddEndpoint,
    write_event: WriteEvent,
) -> None:
    endpoint = add_endpoint(receiver.url)
    receiver.answer = lambda _: 500
    write_event(1)
    wait_until(lambda: deliveries(http)[0]["attempts"] == 1, "it was tried")
    client.webhooks.delete(endpoint["id"])
    assert deliveries(http) == []


@pytest.mark.one_database
def test_the_receiver_of_the_documentation(
    http: httpx2.Client, add_endpoint: AddEndpoint, write_event: WriteEvent
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    endpoint = add_endpoint("http://127.0.0.1:9/")  # it has no port before it has its secret
    environment = os.environ | {"OPENAI_WEBHOOK_SECRET": endpoint["signing_secret"], "PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as receiver:
        try:
            port = wait_until(lambda: _port_of(receiver.pid), "the receiver starts")
            at = {"url": f"http://127.0.0.1:{port}/"}
            assert http.post(f"/v1/webhook_endpoints/{endpoint['id']}", json=at).status_code == 200
            write_event(1)
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "alias.moved chat\n"
            [delivery] = await_ended(http, 1)
            assert delivery["status_code"] == 204
        finally:
            receiver.kill()


def _port_of(pid: int) -> int | None:
    """The port that a process listens on, once it does."""
    connections = psutil.Process(pid).net_connections("tcp")
    return next((each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN), None)
