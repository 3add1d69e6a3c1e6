"""What an endpoint is sent: an event as OpenAI has it, signed as Standard Webhooks has it.

https://www.standardwebhooks.com, https://platform.openai.com/docs/guides/webhooks
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from standardwebhooks import Webhook

from app.webhooks.schemas import EventObject

_SECRET_BYTES = 30
"""A multiple of three, so that Base64 needs no padding."""


def new_secret() -> str:
    """Return a secret to sign with."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_request(event: EventObject, signing_secrets: Sequence[str]) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body that tell of an event, with a signature by each of the secrets.

    The event's id is the message's: it is the same each time that the event is sent, so that a receiver can
    tell what it has received before.
    """
    body = orjson.dumps(event.model_dump())
    now = datetime.now(UTC)
    signatures = [Webhook(secret).sign(event.id, now, body.decode()) for secret in signing_secrets]
    headers = {
        "content-type": "application/json",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
    return headers, body
