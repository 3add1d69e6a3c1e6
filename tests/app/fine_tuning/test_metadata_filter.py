"""Jobs are listed by their metadata, or by having none."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.support.jobs import create, upload


@pytest.fixture
def jobs(client: OpenAI) -> dict[str, str]:
    """The ids of jobs with each kind of metadata."""
    file = upload(client)
    kinds: dict[str, Any] = {
        "stew": {"dish": "stew", "team": "a"},
        "soup": {"dish": "soup", "team": "a"},
        "null": {"null": "null"},
        "empty": {},
        "none": None,
    }
    return {
        name: create(client, training_file=file, metadata=metadata).id for name, metadata in kinds.items()
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("metadata[dish]=stew", {"stew"}),
        ("metadata[team]=a&metadata[dish]=soup", {"soup"}),
        ("metadata[team]=a", {"stew", "soup"}),
        ("metadata[null]=null", {"null"}),
        ("metadata=null", {"empty", "none"}),
        ("", {"stew", "soup", "null", "empty", "none"}),
    ],
)
def test_a_filter(http: httpx2.Client, jobs: dict[str, str], query: str, found: set[str]) -> None:
    listed = http.get(f"/v1/fine_tuning/jobs?{query}").json()["data"]
    assert {job["id"] for job in listed} == {jobs[name] for name in found}


def test_the_official_client_filters(client: OpenAI, jobs: dict[str, str]) -> None:
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"dish": "stew"})] == [jobs["stew"]]


def test_a_filter_that_is_none(http: httpx2.Client) -> None:
    error = http.get("/v1/fine_tuning/jobs?metadata=stew").json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "metadata")
