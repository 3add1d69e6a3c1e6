"""`x-ratelimit-*` and `retry-after`, as OpenAI sends them and its clients read them.

https://platform.openai.com/docs/guides/rate-limits
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from app.limits.quota import Quota


def rate_limit_headers(states: Iterable[tuple[Quota, int, float]]) -> Mapping[str, str]:
    """Return what the client is told: of each kind, the quota of which the least is left.

    Args:
        states: quotas, with what was used of each and the seconds until its minute ends.
    """
    tightest: dict[str, tuple[int, int, float]] = {}
    for quota, used, seconds in states:
        if quota.kind != "concurrent_requests":
            state = max(0, quota.most - used), quota.most, seconds
            tightest[quota.kind] = min(tightest.get(quota.kind, state), state)
    headers: dict[str, str] = {}
    for kind, (remaining, most, seconds) in tightest.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(most)
        headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
        headers[f"x-ratelimit-reset-{kind}"] = duration(seconds)
    return headers


def retry_headers(seconds: float) -> Mapping[str, str]:
    """Return when to try again: in whole seconds and, which clients prefer, in milliseconds."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    return {"retry-after": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)}


def duration(seconds: float) -> str:
    """Return a time as OpenAI writes it, for example `6m0s`, `1.5s` or `20ms`."""
    milliseconds = max(0, math.ceil(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
