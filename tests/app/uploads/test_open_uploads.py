"""A project's open uploads, and its waiting jobs, are listed and bounded."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from tests.support.jobs import create, upload
from tests.support.service import OTHER_KEY, run_service


def announce(client: OpenAI, size: int = 100) -> str:
    return client.uploads.create(
        bytes=size, filename="a.bin", mime_type="application/octet-stream", purpose="user_data"
    ).id


def test_uploads_are_listed_in_pages(client: OpenAI, other_client: OpenAI, http: httpx2.Client) -> None:
    ids = [announce(client) for _ in range(5)][::-1]
    announce(other_client)
    client.uploads.cancel(ids[0])

    first: dict[str, Any] = http.get("/v1/uploads", params={"limit": 3}).json()
    rest = http.get("/v1/uploads", params={"limit": 3, "after": first["last_id"]}).json()
    oldest = http.get("/v1/uploads", params={"limit": 1, "order": "asc"}).json()

    assert [each["id"] for each in first["data"] + rest["data"]] == ids
    assert (first["has_more"], rest["has_more"], first["object"]) == (True, False, "list")
    assert [each["status"] for each in first["data"]] == ["cancelled", "pending", "pending"]
    assert oldest["data"][0]["id"] == ids[-1]
    unknown = http.get("/v1/uploads", params={"after": "upload_x"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")


def test_open_uploads_are_bounded(settings: Settings, database: Database) -> None:
    bounds = {"max_open_uploads_per_project": 3, "max_open_upload_bytes_per_project": 1000}
    with run_service(settings.model_copy(update=bounds)) as service, service.client() as client:
        ids = [announce(client) for _ in range(3)]
        with pytest.raises(openai.RateLimitError) as refused:
            announce(client)
        assert refused.value.code == "too_many_uploads"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert "GET /v1/uploads" in refused.value.message
        with service.client(OTHER_KEY) as other:
            announce(other)
        client.uploads.cancel(ids[0])
        with pytest.raises(openai.RateLimitError) as refused:
            announce(client, 801)
        assert (refused.value.code, refused.value.param) == ("too_many_upload_bytes", "bytes")
        announce(client, 800)


def test_waiting_jobs_are_bounded(settings: Settings, database: Database) -> None:
    limited = settings.model_copy(update={"max_waiting_jobs_per_project": 2})
    with run_service(limited) as service, service.client() as client:
        file = upload(client)
        jobs = [create(client, training_file=file) for _ in range(2)]
        client.fine_tuning.jobs.pause(jobs[1].id)  # it is to run later, so it counts
        with pytest.raises(openai.RateLimitError) as refused:
            create(client, training_file=file)
        assert refused.value.code == "too_many_jobs"
        assert "cancel some" in refused.value.message
        client.fine_tuning.jobs.cancel(jobs[0].id)
        create(client, training_file=file)
