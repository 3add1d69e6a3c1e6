"""Rate limits on the wire, in the shape of OpenAI's administration API.

https://platform.openai.com/docs/api-reference/project-rate-limits
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.pagination import Identified
from app.limits.models import RateLimit

Most = Annotated[int, Field(ge=1, le=2**53, strict=True)]
_PREFIX = "rl-"


class UpdateRateLimit(BaseModel):
    """A request to change a limit: fields that are left out stay, and null means unlimited."""

    model_config = ConfigDict(extra="forbid")

    max_requests_per_1_minute: Most | None = None
    max_tokens_per_1_minute: Most | None = None
    max_concurrent_requests: Most | None = None


class RateLimitObject(Identified):
    """What may be asked of a base model and its fine-tuned models, or of all of them together."""

    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    """A base model, or `all`."""
    max_requests_per_1_minute: int | None
    """Null means unlimited, here and below."""
    max_tokens_per_1_minute: int | None
    max_concurrent_requests: int | None

    @classmethod
    def of(cls, limit: RateLimit) -> RateLimitObject:
        """Return the limit as the API shows it."""
        model = limit.base_model or "all"
        return cls(
            id=_PREFIX + model,
            model=model,
            max_requests_per_1_minute=limit.max_requests_per_1_minute,
            max_tokens_per_1_minute=limit.max_tokens_per_1_minute,
            max_concurrent_requests=limit.max_concurrent_requests,
        )


def model_of(rate_limit_id: str) -> str:
    """Return the model that a limit is for, by its id."""
    return rate_limit_id.removeprefix(_PREFIX)
