"""Every route of the console, found by itself: what roles may do there, and what it answers to anything."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import pytest
from fastapi.routing import APIRoute
from openai import OpenAI

from app.auth.roles import ALLOWED, ROLES, Action
from app.console import events
from app.console.router import SECTIONS, console_routes
from tests.console.conftest import Console
from tests.console.test_session import csrf_token
from tests.support.aliases import NAME, put
from tests.support.jobs import upload
from tests.support.lineage import add_lineage
from tests.support.training_files import training_bytes

_STRICTER = {
    "/console/models/{name}/delete": Action.MANAGE,
}
"""Of changes that need more than others of their section, what they need."""
_OF_EVERYBODY = {"/console/sign-in", "/console/sign-out"}
ROUTES = [route for route in console_routes() if isinstance(route, APIRoute)]
READING = [route for route in ROUTES if "GET" in route.methods and route.path != events.PATH]
CHANGING = [route.path for route in ROUTES if "GET" not in route.methods]
PARAMETER = re.compile(r"\{[^}]*\}")


@contextmanager
def signed_in(console: Console, key: str) -> Generator[httpx2.Client]:
    with console.service.http(None) as http:
        assert http.post("/console/sign-in", data={"api_key": key}).status_code == 303
        yield http


def address(path: str, value: str = "nobody") -> str:
    """The address of a route, with the value in place of every parameter."""
    return PARAMETER.sub(lambda _: quote(value, safe=""), path.replace("{action}", "cancel"))


def things(console: Console, client: OpenAI) -> dict[str, str]:
    """The addresses of things that there are, by the beginnings of their routes' paths."""
    made = add_lineage(console.database)
    with console.service.http() as http:
        put(http, split=[{"model": made.first, "weight": 1}])
    return {
        "/console/datasets/{file_id}": f"/console/datasets/{upload(client, training_bytes(30))}",
        "/console/jobs/{job_id}": "/console/jobs/ftjob-default-b",
        "/console/comparisons/{comparison_id}": f"/console/comparisons/{made.comparison}",
        "/console/models/{name}": f"/console/models/{quote(made.second)}",
        "/console/aliases/{name}": f"/console/aliases/{NAME}",
    }


def action_of(path: str) -> Action:
    section = max((each for each in SECTIONS if path.startswith(each.path)), key=lambda each: len(each.path))
    return _STRICTER.get(path, section.changes)


def test_there_are_changes_to_look_at() -> None:
    assert {"/console/jobs", "/console/sign-out", *_STRICTER} <= set(CHANGING)


@pytest.mark.one_database
def test_a_change_needs_the_role_that_its_section_names(console: Console) -> None:
    refused: dict[str, list[str]] = {path: [] for path in CHANGING}
    for role in ROLES:
        with signed_in(console, console.key_with_role(role)) as http:
            token = csrf_token(http)
            for path in set(CHANGING) - _OF_EVERYBODY:
                answer = http.post(address(path), data={"csrf_token": token})
                assert answer.status_code < 500, (path, role, answer.text)
                assert answer.headers.get("content-type", "text/html").startswith("text/html")
                if answer.status_code == 403:
                    refused[path].append(role)
    assert refused == {
        path: [role for role in ROLES if path not in _OF_EVERYBODY and role not in ALLOWED[action_of(path)]]
        for path in CHANGING
    }


@pytest.mark.one_database
def test_no_change_without_the_token_of_the_session(console: Console) -> None:
    with signed_in(console, console.key) as http:
        for path in set(CHANGING) - {"/console/sign-in"}:
            for headers in ({}, {"x-csrf-token": "x"}, {"x-http-method-override": "GET"}):
                answer = http.post(address(path), data={"_method": "GET"}, headers=headers)
                assert answer.status_code == 403, path
                assert "Forbidden" in answer.text, path


HOSTILE = (
    "0",
    "-1",
    "9" * 400,
    "1e999",
    "\0",
    "a\0b",
    "é𝄞",
    "\u202e",
    "x" * 10_000,
    "%",
    "'\"<b>",
    "true",
    "[1]",
)
"""What is sent in place of every parameter; one after the other, since a page tells of the first only."""


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_pages_answer_whatever_is_asked_of_them(console: Console, client: OpenAI, text: str) -> None:
    known = things(console, client)

    def ask(http: httpx2.Client, address: str) -> None:
        answer = http.get(address)
        assert answer.status_code < 500, (address[:200], answer.text)
        kind = answer.headers.get("content-type", "text/html")
        assert kind.startswith("text/html") or (address.partition("?")[0].endswith("/curves")), address[:200]
        assert answer.status_code < 400 or "<b>" not in answer.text, address[:200]

    with signed_in(console, console.key) as http:
        for route in READING:
            path = route.path
            for beginning, there in known.items():
                path = path.replace(beginning, there)
            path = address(path, "1")
            ask(http, address(route.path, text))
            parameters: list[Any] = route.dependant.query_params
            for each in parameters:
                others = {one.alias: "x" for one in parameters if one.field_info.is_required()}
                for query in ({**others, each.alias: text}, {**others, each.alias: [text, text]}):
                    ask(http, f"{path}?{urlencode(query, doseq=True)}")
