"""Usage: counted off the critical path, summed on both databases, shown to its own project only."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.auth import service as auth_service
from app.auth.models import Project
from app.core.database import Database
from app.core.settings import Settings
from app.usage import folding
from app.usage.models import AliasUsage, Sums, Usage
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import API_KEY, BASE_MODEL, OTHER_KEY, Service, run_service
from tests.support.usage import totals, usage
from tests.support.waiting import wait_until

ADAPTER = f"ft:{BASE_MODEL}:default::1"
OWNERS = ("default", "other")
MODELS = (ADAPTER, BASE_MODEL)
MINUTES = (0, 60, 86340)
"""Of a day, in which something was asked."""


def test_every_kind_of_answer_is_counted(
    service: Service,
    client: OpenAI,
    http: httpx2.Client,
    engine: EngineStandIn,
) -> None:
    client.chat.completions.create(**ASK)
    plain = list(client.chat.completions.create(**ASK, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    asked = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert asked[-1].usage is not None
    assert (asked[-1].choices, asked[-1].usage.completion_tokens) == ([], 3)
    assert asked[:-1] == plain
    assert all(body["stream_options"] == {"include_usage": True} for body in engine.bodies[1:])
    client.completions.create(model=BASE_MODEL, prompt="x")
    wait_until(lambda: totals(usage(http)) == (4, 20, 12), "usage is written")
    with service.http(OTHER_KEY) as other:
        assert totals(usage(other)) == (0, 0, 0)


def test_usage_is_known_by_key(
    service: Service, http: httpx2.Client, engine: EngineStandIn, database: Database
) -> None:
    with database.writer() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "default")).one()
        key, secret = auth_service.create_key(session, project_id, "second")
    with service.http(secret) as second:
        for asking in (http, second, second):
            assert asking.post("/v1/chat/completions", json=ASK).status_code == 200
    wait_until(lambda: totals(usage(http)) == (3, 15, 9), "usage is written")
    path, day = "/v1/organization/usage/completions", {"start_time": int(time.time()) - 3600}
    with OpenAI(base_url=f"{service.url}/v1", admin_api_key=API_KEY, api_key="none") as client:
        page = client.admin.organization.usage.completions(**day, group_by=["api_key_id", "model"])
    found = {
        (each.api_key_id == key.id, each.model, each.num_model_requests)  # type: ignore[union-attr]
        for bucket in page.data
        for each in bucket.results
    }
    assert found == {(True, BASE_MODEL, 2), (False, BASE_MODEL, 1)}
    of_one = http.get(path, params=day | {"api_key_ids[]": key.id}).json()["data"]
    [result] = [each for bucket in of_one for each in bucket["results"]]
    assert (result["num_model_requests"], result["api_key_id"]) == (2, None), "not grouped by it"


def test_what_fails_is_not_counted_and_a_broken_stream_is_a_request(
    client: OpenAI,
    http: httpx2.Client,
    engine: EngineStandIn,
) -> None:
    engine.behaviour = "refuse"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASK)
    engine.behaviour = "break"
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**ASK, stream=True))
    wait_until(lambda: totals(usage(http)) == (1, 0, 0), "usage is written")


def test_what_is_counted_is_written_at_shutdown(
    settings: Settings,
    database: Database,
    engine: EngineStandIn,
) -> None:
    with run_service(settings) as service, service.client() as client:
        client.chat.completions.create(**ASK)
    with run_service(settings) as service, service.http() as http:
        assert totals(usage(http)) == (1, 5, 3)


def test_no_sum_is_lost_between_processes(database: Database, http: httpx2.Client) -> None:
    with database.reader() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "default")).one()
    minute = int(time.time()) // 60 * 60
    keys = [(project_id, minute - 60 * n, model) for n in range(3) for model in (BASE_MODEL, ADAPTER)]

    def write(order: int) -> None:
        for _ in range(10):
            with database.writer() as session:
                folding.add_usage(session, {key: Sums(1, 2, 3) for key in keys[::order]})

    threads = [threading.Thread(target=write, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals(usage(http)) == (120, 240, 360)
    assert totals(usage(http, models=ADAPTER)) == (60, 120, 180)
    assert totals(usage(http, models="nothing")) == (0, 0, 0)

    for parameter in ("group_by", "group_by[]"):
        grouped = usage(http, **{parameter: "model"}, bucket_width="1d", start_time=minute - 86400)
        [result, *_] = [result for bucket in grouped.data for result in bucket.results]
        assert (result.model, result.project_id) == (ADAPTER, project_id)  # pyright: ignore


def test_buckets_and_pages(database: Database, http: httpx2.Client) -> None:
    day = 1_700_006_400
    with database.reader() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "default")).one()
    with database.writer() as session:
        folding.add_usage(
            session,
            {
                (project_id, day, BASE_MODEL): Sums(1, 2, 3),
                (project_id, day + 86340, BASE_MODEL): Sums(10, 20, 30),
                (project_id, day + 2 * 86400, BASE_MODEL): Sums(100, 200, 300),
            },
        )
    page = usage(http, start_time=day + 7, end_time=day + 3 * 86400, bucket_width="1d")
    assert [(bucket.start_time, bucket.end_time) for bucket in page.data] == [
        (day + n * 86400, day + (n + 1) * 86400) for n in range(3)
    ]
    assert [bucket.results and totals_of(bucket.results[0]) for bucket in page.data] == [
        (11, 22, 33),
        [],
        (100, 200, 300),
    ]
    assert (page.has_more, page.next_page) == (False, None)

    first = usage(http, start_time=day, end_time=day + 3 * 86400, bucket_width="1d", limit=2)
    assert (len(first.data), first.has_more) == (2, True)
    rest = usage(http, start_time=day, end_time=day + 3 * 86400, bucket_width="1d", page=first.next_page)
    assert [*first.data, *rest.data] == page.data


def totals_of(result: Any) -> tuple[int, int, int]:
    return result.num_model_requests, result.input_tokens, result.output_tokens


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": 10**15}, "start_time"),
        ({"start_time": 100, "end_time": 100}, "end_time"),
        ({"start_time": 100, "bucket_width": "1w"}, "bucket_width"),
        ({"start_time": 100, "limit": 32}, "limit"),
        ({"start_time": 100, "group_by": "user_id"}, "group_by"),
        ({"start_time": 100, "group_by": "api_key_id", "aliases": "a"}, "aliases"),
        ({"start_time": 100, "page": "x"}, "page"),
        ({"start_time": 100, "page": "9" * 12}, "end_time"),
    ],
)
def test_what_cannot_be_shown_is_refused(http: httpx2.Client, query: dict[str, Any], param: str) -> None:
    response = http.get("/v1/usage", params=query)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith(param)


def test_old_minutes_become_days(database: Database, http: httpx2.Client) -> None:
    now = 1_700_006_400 + 12 * 3600
    today = now // 86400 * 86400
    old, recent = today - 91 * 86400, today - 90 * 86400
    with database.reader() as session:
        projects = {
            name: session.scalars(select(Project.id).where(Project.name == name)).one() for name in OWNERS
        }
    minutes = [
        (day + minute, model) for day in (old - 86400, old, recent) for minute in MINUTES for model in MODELS
    ]
    with database.writer() as session:
        counted = {
            (project, at, model): Sums(1, 2, 3) for project in projects.values() for at, model in minutes
        }
        folding.add_usage(session, counted)
        by_alias = {(*key, "soup:live"): sums for key, sums in counted.items()}
        folding.add_usage(session, by_alias, AliasUsage)

    def shown(width: str, **query: Any) -> list[Any]:
        return usage(
            http, bucket_width=width, **{"start_time": old - 86400, "end_time": recent + 86400} | query
        ).data

    days = shown("1d", group_by="model")
    assert shown("1d", group_by="model", aliases="soup:live") == days
    assert not any(bucket.results for bucket in shown("1d", aliases="stew:live"))
    recent_minutes = shown("1m", start_time=recent, limit=1440)
    stop = threading.Barrier(2)

    def fold() -> None:
        stop.wait()
        more = True
        while more:
            with database.writer() as session:
                more = folding.fold_oldest_day(session, now)

    threads = [threading.Thread(target=fold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown("1d", group_by="model") == days
    assert shown("1d", group_by="model", aliases="soup:live") == days
    assert shown("1m", start_time=recent, limit=1440) == recent_minutes, "they are not old enough"
    with database.reader() as session:
        kept = session.execute(select(Usage.minute).where(Usage.project_id == projects["default"])).scalars()
    folded = [old - 86400, old] * len(MODELS)
    assert sorted(kept) == sorted(folded + [recent + minute for minute in MINUTES] * len(MODELS))
    hours = [
        bucket.start_time for bucket in shown("1h", start_time=old, end_time=old + 86400) if bucket.results
    ]
    assert hours == [old]


def test_what_a_deleted_project_has_used_holds_up_nobody(database: Database, http: httpx2.Client) -> None:
    with database.reader() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "default")).one()
    counted = {(each, 0, "a-model"): Sums(1, 2, 3) for each in (project_id, "proj_deleted")}
    for table, key in ((Usage, ()), (AliasUsage, ("soup:live",))):
        with database.writer() as session:
            folding.add_usage(session, {(*each, *key): sums for each, sums in counted.items()}, table)
        with database.reader() as session:
            assert session.scalars(select(table.project_id)).all() == [project_id]
