"""The events that webhooks tell of: those of OpenAI's that happen here, and ours.

https://platform.openai.com/docs/api-reference/webhook-events
"""

from __future__ import annotations

from typing import Any, Literal, get_args

EventType = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "comparison.completed",
    "comparison.failed",
    "comparison.cancelled",
    "alias.moved",
    "model.quarantined",
]

EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


def sample_data(event_type: EventType) -> dict[str, Any]:
    """Return data as an event of this type has it, about an object that does not exist."""
    match event_type.partition(".")[0]:
        case "fine_tuning":
            return {"id": "ftjob-abc123"}
        case "batch":
            return {"id": "batch_abc123"}
        case "comparison":
            return {"id": "cmp_abc123"}
        case "alias":
            return {"id": "sample", "version": 1, "kind": "created"}
        case _:
            return {"id": "ft:sample:default::abc123", "reason": "This is a sample."}
