"""Stored responses: continued, read, paged, deleted, and gone when they expire."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select, update

from app.core.database import Database
from app.core.settings import Settings
from app.responses import service as responses_service
from app.responses.models import StoredResponse
from tests.support.engine_stand_in import EngineStandIn
from tests.support.service import BASE_MODEL, run_service

ASK: dict[str, Any] = {"model": BASE_MODEL, "input": "Soup?"}


def stored(database: Database) -> list[StoredResponse]:
    with database.reader() as session:
        return list(session.scalars(select(StoredResponse)))


def expire(database: Database, response_id: str) -> None:
    with database.writer() as session:
        session.execute(
            update(StoredResponse).where(StoredResponse.id == response_id).values(expires_at=time.time() - 1)
        )


def test_a_response_is_stored_by_default_and_read_again(
    client: OpenAI, http: httpx2.Client, engine: EngineStandIn
) -> None:
    created = http.post(
        "/v1/responses", json=ASK | {"metadata": {"a": "b"}, "instructions": "\u0000 é"}
    ).json()
    assert created["store"] is True
    assert http.get(f"/v1/responses/{created['id']}").json() == created
    assert client.responses.retrieve(created["id"]).output_text == "Leek soup."


def test_what_is_not_to_be_stored_is_not(
    client: OpenAI, engine: EngineStandIn, database: Database, settings: Settings
) -> None:
    response = client.responses.create(**ASK, store=False)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(response.id)
    assert caught.value.code == "response_not_found"
    with run_service(settings.model_copy(update={"response_days": 0})) as other, other.client() as nothing:
        assert nothing.responses.create(**ASK).to_dict()["store"] is False
    assert stored(database) == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_continues_without_the_earlier_instructions(
    client: OpenAI, engine: EngineStandIn, stream: bool
) -> None:
    def ask(**extra: Any) -> Any:
        if not stream:
            return client.responses.create(**ASK | extra)
        *_, last = client.responses.create(**ASK | extra, stream=True)
        assert last.type == "response.completed"
        return last.response

    first = ask(instructions="Be brief.")
    second = ask(input="More?", previous_response_id=first.id)
    third = ask(input="And?", previous_response_id=second.id, instructions="Be polite.")
    assert third.previous_response_id == second.id
    body = engine.bodies[-1]
    assert body["instructions"] == "Be polite."
    assert [(item["role"], item["content"]) for item in body["input"]] == [
        ("user", "Soup?"),
        ("assistant", "Leek soup."),
        ("user", "More?"),
        ("assistant", "Leek soup."),
        ("user", "And?"),
    ]
    assert "instructions" not in engine.bodies[-2]


def test_input_items_are_those_of_the_whole_conversation(client: OpenAI, engine: EngineStandIn) -> None:
    first = client.responses.create(**ASK)
    items: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "More?"}]
    second = client.responses.create(**ASK | {"input": items}, previous_response_id=first.id)
    found = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [(item.role, item.content[0].text) for item in found] == [  # type: ignore[union-attr]
        ("user", "Soup?"),
        ("assistant", "Leek soup."),
        ("developer", "Be brief."),
        ("user", "More?"),
    ]
    assert found[1].id == first.output[0].id
    assert len({item.id for item in found}) == 4
    newest = client.responses.input_items.list(second.id)
    assert [item.id for item in newest.data] == [item.id for item in reversed(found)]
    assert newest.has_more is False
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.input_items.list(second.id, after="msg_nobody")
    assert caught.value.param == "after"


def test_items_of_stored_responses_may_be_referred_to(
    client: OpenAI, other_client: OpenAI, engine: EngineStandIn
) -> None:
    first = client.responses.create(**ASK)
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    again = ASK | {
        "input": [{"role": "user", "content": "Soup?"}, reference, {"role": "user", "content": "?"}]
    }
    client.responses.create(**again)
    assert engine.bodies[-1]["input"][1] == {"type": "message", "role": "assistant", "content": "Leek soup."}
    with pytest.raises(openai.BadRequestError) as caught:
        other_client.responses.create(**again)
    assert (caught.value.code, caught.value.param) == ("item_not_found", "input[1].id")


def test_another_project_finds_nothing(
    client: OpenAI, other_client: OpenAI, engine: EngineStandIn, database: Database
) -> None:
    response = client.responses.create(**ASK)
    for forbidden in (
        other_client.responses.retrieve,
        other_client.responses.delete,
        other_client.responses.cancel,
        other_client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            forbidden(response.id)
        assert caught.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        other_client.responses.create(**ASK, previous_response_id=response.id)
    assert (refused.value.code, refused.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    assert len(engine.bodies) == len(stored(database)) == 1


def test_what_was_deleted_or_has_expired_is_gone(
    client: OpenAI, http: httpx2.Client, engine: EngineStandIn, database: Database
) -> None:
    first = client.responses.create(**ASK)
    second = client.responses.create(**ASK, previous_response_id=first.id)
    deleted = http.delete(f"/v1/responses/{first.id}").json()
    assert deleted == {"id": first.id, "object": "response", "deleted": True}
    for missing in (first.id, second.id):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**ASK, previous_response_id=missing)
        assert caught.value.code == "previous_response_not_found"
        assert first.id in str(caught.value)
    assert client.responses.retrieve(second.id).id == second.id
    with pytest.raises(openai.BadRequestError) as unlisted:
        client.responses.input_items.list(second.id)
    assert (unlisted.value.code, unlisted.value.param) == ("previous_response_not_found", "response_id")
    assert "'input'" not in str(unlisted.value)
    expire(database, second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    kept = client.responses.create(**ASK)
    with database.writer() as session:
        responses_service.delete_expired(session)
    assert [each.id for each in stored(database)] == [kept.id]


def test_what_is_not_supported_is_refused_by_name(
    client: OpenAI, http: httpx2.Client, engine: EngineStandIn
) -> None:
    response = client.responses.create(**ASK)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(response.id)
    error = http.get(f"/v1/responses/{response.id}", params={"stream": "true"}).json()["error"]
    assert error["param"] == "stream"


def test_a_conversation_that_is_too_long_is_refused(
    client: OpenAI, engine: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses_service, "MAX_RESPONSES", 2)
    last = client.responses.create(**ASK)
    for _ in range(2):
        last = client.responses.create(**ASK, previous_response_id=last.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASK, previous_response_id=last.id)
    assert (caught.value.code, caught.value.param) == ("conversation_too_long", "previous_response_id")
    monkeypatch.setattr(responses_service, "MAX_BYTES", 1000)
    long = "x" * 1000
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASK | {"input": long})
    assert (caught.value.code, caught.value.param) == ("conversation_too_long", "input")
    client.responses.create(**ASK | {"input": long}, store=False)


def test_items_that_are_referred_to_again_and_again_are_bounded(
    client: OpenAI, engine: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses_service, "MAX_BYTES", 20_000)
    first = client.responses.create(**ASK | {"input": "x" * 5000})
    [asked] = client.responses.input_items.list(first.id).data
    big: Any = {"type": "item_reference", "id": asked.id}
    small: Any = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(**ASK | {"input": [big] * 3 + [small] * 20}, store=False)
    assert len(engine.bodies[-1]["input"]) == 23
    for store in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**ASK | {"input": [big] * 4}, store=store)
        assert (caught.value.code, caught.value.param) == ("conversation_too_long", "input")
    second = client.responses.create(**ASK)
    monkeypatch.setattr(responses_service, "MAX_RESPONSES", 1)
    others: Any = {"type": "item_reference", "id": second.output[0].id}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASK | {"input": [small, others]}, store=False)
    assert (caught.value.code, caught.value.param) == ("conversation_too_long", "input")


def test_what_responses_repeat_of_their_requests_counts(
    client: OpenAI, engine: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses_service, "MAX_STORED_BYTES", 20_000)
    first = client.responses.create(**ASK, instructions="x" * 12_000)
    second = client.responses.create(**ASK, previous_response_id=first.id, instructions="x" * 12_000)
    item: Any = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(**ASK | {"input": [item]})
    for extra, param in (
        ({"previous_response_id": second.id}, "previous_response_id"),
        ({"input": [item, {"type": "item_reference", "id": second.output[0].id}]}, "input"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**ASK | extra)
        assert (caught.value.code, caught.value.param) == ("conversation_too_long", param)


def test_a_response_that_broke_off_is_stored_as_failed(client: OpenAI, engine: EngineStandIn) -> None:
    engine.behaviour = "break"
    *_, last = client.responses.create(**ASK, stream=True)
    assert last.type == "response.failed"
    found = client.responses.retrieve(last.response.id)
    assert (found.status, found.error) == ("failed", last.response.error)
    with pytest.raises(openai.BadRequestError, match="failed"):
        client.responses.create(**ASK, previous_response_id=found.id)


@pytest.mark.parametrize("stream", [False, True])
def test_without_the_database_the_answer_comes_and_says_that_it_is_not_stored(
    client: OpenAI, engine: EngineStandIn, database: Database, stream: bool
) -> None:
    with database.writer() as session:
        StoredResponse.__table__.drop(session.connection())  # type: ignore[attr-defined]
    if stream:
        *_, last = client.responses.create(**ASK, stream=True)
        assert last.type == "response.completed"
        response = last.response
    else:
        response = client.responses.create(**ASK)
    assert response.output_text == "Leek soup."
    assert response.to_dict()["store"] is False
