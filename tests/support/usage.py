"""What the usage API counted."""

from __future__ import annotations

import time
from typing import Any

import httpx2
from openai.types.admin.organization import UsageCompletionsResponse


def usage(http: httpx2.Client, **query: Any) -> UsageCompletionsResponse:
    query = {"start_time": int(time.time()) - 3600, "bucket_width": "1h"} | query
    response = http.get("/v1/usage", params=query)
    assert response.status_code == 200, response.text
    return UsageCompletionsResponse.model_validate(response.json())


def totals(page: UsageCompletionsResponse) -> tuple[int, int, int]:
    results: list[Any] = [result for bucket in page.data for result in bucket.results]
    return (
        sum(result.num_model_requests for result in results),
        sum(result.input_tokens for result in results),
        sum(result.output_tokens for result in results),
    )
