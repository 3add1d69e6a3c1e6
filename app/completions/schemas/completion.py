"""`POST /v1/completions`: the request."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.completions.schemas.sampling import SamplingParameters


class CompletionRequest(SamplingParameters):
    """`POST /v1/completions`, the legacy kind: a bare prompt, without a chat template."""

    path = "/v1/completions"

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=5, strict=True)] | None = None
    echo: bool | None = None
    suffix: None = None
