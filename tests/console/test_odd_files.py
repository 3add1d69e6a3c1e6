"""What the pages of datasets say about files that nobody would write: never a 500, and never for long."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import httpx2
import pytest

from tests.console.conftest import Console
from tests.support.training_files import chat_line, training_bytes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture
def http(console: Console) -> Iterator[httpx2.Client]:
    """Somebody who has signed in."""
    with console.service.http(None) as http:
        assert http.post("/console/sign-in", data={"api_key": console.key}).status_code == 303
        yield http


def upload(console: Console, content: bytes) -> str:
    """Upload a file, and return the address of its pages."""
    with console.service.client() as client:
        file = client.files.create(file=("x.jsonl", content), purpose="fine-tune")
        wait_until(lambda: client.files.retrieve(file.id).status != "uploaded", "the file is checked")
    return f"/console/datasets/{file.id}"


def with_arguments(arguments: str) -> str:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    question = {"role": "user", "content": "x"}
    return json.dumps({"messages": [question, {"role": "assistant", "tool_calls": [call]}]})


def test_a_search_says_that_a_file_cannot_be_read(console: Console, http: httpx2.Client) -> None:
    """The error comes from another process."""
    address = upload(console, gzip.compress(training_bytes())[:-9])
    found = http.get(f"{address}/search", params={"q": "nothing"})
    assert found.status_code == 400, found.text
    assert "the file is truncated" in found.text


@pytest.mark.parametrize("path", ["examples", "examples?before=1", "lines/3", "search?q=x"])
def test_a_place_beyond_the_end_has_nothing(console: Console, http: httpx2.Client, path: str) -> None:
    """File systems refuse places that are far beyond the largest file."""
    address = upload(console, training_bytes())
    path, _, query = path.partition("?")
    for offset in (10**6, 2**62):
        asked = urlencode({"line": 3, "offset": offset})
        answer = http.get(f"{address}/{path}?{query}&{asked}")
        assert answer.status_code == (404 if path == "lines/3" else 200), answer.text


def test_millions_of_empty_lines_are_passed_over_at_once(console: Console, http: httpx2.Client) -> None:
    text = b"\n \t\r\n" * 1_000_000
    content = text + chat_line("last?").encode()
    with console.service.client() as client:
        file = client.files.create(file=("x.jsonl", content), purpose="fine-tune")
    address = f"/console/datasets/{file.id}"
    spent = time.process_time()
    for asked in ({"offset": 0}, {"offset": 2_000_000}, {"offset": len(text), "before": 1}):
        assert http.get(f"{address}/examples", params={"line": 1, **asked}).status_code == 200
    assert time.process_time() - spent < 2


def test_indented_json_is_not_many_times_as_long(console: Console, http: httpx2.Client) -> None:
    deep = "[" * 900 + ",".join("1" * 40_000) + "]" * 900
    shallow = "[" * 50 + ",".join("1" * 400_000) + "]" * 50
    lines = deep, with_arguments(f'{{"a": {shallow}}}')
    address = upload(console, "\n".join(lines).encode())
    for path in ("lines/1", "lines/2", "examples"):
        answer = http.get(f"{address}/{path}")
        assert answer.status_code == 200
        assert len(answer.content) < 4_000_000, path


def test_arguments_may_have_characters_that_cannot_be_sent(console: Console, http: httpx2.Client) -> None:
    """Half of a surrogate pair, as an escape in JSON that is itself in a text."""
    address = upload(console, with_arguments('{"a": "\\ud800"}').encode())
    for path in ("lines/1", "examples"):
        answer = http.get(f"{address}/{path}")
        assert answer.status_code == 200, answer.text
        assert "\\ud800" in answer.text
