"""Whatever is wrong with a request, `param` is a place in it: on every route, for every field."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.service import BASE_MODEL, Service

pytestmark = pytest.mark.one_database

DOCUMENT: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "openapi" / "openapi.json").read_text("utf-8")
)
WRONG: list[Any] = [
    None,
    -1,
    "",
    "no such thing",
    [],
    [None],
    [{"type": "no such type"}],
    {"type": "no such type"},
    {"type": None},
    {"no": {"such": "thing"}},
]
MAY_BE_AWAY = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/health/ready"}
"""Routes that answer 503 while there is no engine."""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def schema_of(operation: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The schema of a body of this content type, if the route takes one."""
    content = operation.get("requestBody", {}).get("content", {})
    if kind not in content:
        return None
    schema = content[kind]["schema"]
    if "$ref" in schema:
        return DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def resolves(param: str, code: str, body: Any) -> bool:
    """Whether the path leads to a place in the body; of a missing field, whether it leads to its object."""
    steps = [int(index) if index else name for index, name in re.findall(r"\[(\d+)\]|([^.\[\]]+)", param)]
    place = body
    for position, step in enumerate(steps, start=1):
        is_there = (
            step in place
            if isinstance(place, dict)
            else isinstance(place, list) and step in range(len(place))
        )
        if not is_there:
            return code == "missing_required_parameter" and position == len(steps) and isinstance(place, dict)
        place = place[step]
    return True


def check(response: httpx2.Response, path: str, body: Any, names: Collection[str] = ()) -> None:
    """Check that a request was answered, or that `param` is a path in its body or one of these names."""
    told = f"{response.request.method} {response.request.url} {json.dumps(body)[:200]}: {response.text[:300]}"
    if response.status_code < 400 or (response.status_code == 503 and path in MAY_BE_AWAY):
        return
    assert response.status_code < 500, told
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, told
    param = error["param"]
    is_named = param is None or param in names or re.search(rf"{{{re.escape(param)}(:path)?}}", path)
    assert is_named or resolves(param, error["code"], body), told


def bodies(schema: dict[str, Any]) -> Iterator[Any]:
    """Bodies that are wrong altogether, or in one field; the required fields are there, as a text."""
    yield from ({}, [], "text", 1, {"no_such_field": 1})
    required = dict.fromkeys(schema.get("required", ()), "x")
    if "model" in required:
        required["model"] = BASE_MODEL
    if "messages" in required:
        required["messages"] = [{"role": "user", "content": "Soup?"}]
    yield required
    for name in schema.get("properties", {}):
        for value in WRONG:
            yield required | {name: value}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_field_of_every_body(service: Service) -> None:
    with service.http() as http:
        for method, path, operation in operations():
            schema = schema_of(operation, "application/json")
            url = re.sub(r"\{[^}]+\}", "none", path)
            for body in bodies(schema) if schema else ():
                check(http.request(method, url, json=body), path, body)


def test_every_query(http: httpx2.Client) -> None:
    for method, path, operation in operations():
        names = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
        url = re.sub(r"\{[^}]+\}", "none", path)
        for query in ({}, *({name: value} for name in names for value in ("", "-1", "x", "\x00", "9" * 30))):
            check(http.request(method, url, params=query), path, None, names)


def test_every_form(http: httpx2.Client) -> None:
    for method, path, operation in operations():
        schema = schema_of(operation, "multipart/form-data")
        names = list(schema["properties"]) if schema else []
        url = re.sub(r"\{[^}]+\}", "none", path)
        forms: list[dict[str, Any]] = [
            {name: part} for name in names for part in ((None, "x"), ("x.jsonl", b"{"))
        ]
        forms += [
            {"no_such_field": (None, "x")},
            dict.fromkeys(names, (None, "x")) | {"file": ("x.jsonl", b"{")},
        ]
        for form in forms if schema else ():
            check(http.request(method, url, files=form), path, None, [*names, *form])
