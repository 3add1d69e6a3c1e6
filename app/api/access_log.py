"""The access log: one line for each request, whatever becomes of it. It has no key, no body and no query."""

from __future__ import annotations

import logging
from typing import cast
from urllib.parse import quote

from app.api.exchange import Exchange
from app.auth.caller import Caller
from app.core.scope import CALLER, MODEL
from app.core.tracing import trace_id

log = logging.getLogger("toque.access")

_LONGEST_TEXT = 512
_PATH_CHARACTERS = "/:@!$&'()*+,;=~%"


def write_exchange(exchange: Exchange) -> None:
    """Write the line of a request that has come to its end."""
    if not log.isEnabledFor(logging.INFO):
        return
    scope = exchange.scope
    caller = cast("Caller | None", scope.get(CALLER))
    first_byte = exchange.first_byte_seconds
    fields = {
        "method": scope["method"],
        "route": exchange.route,
        "path": quote(scope["path"][:_LONGEST_TEXT], _PATH_CHARACTERS, errors="replace"),
        "status": exchange.status,
        "is_complete": exchange.is_complete,
        "duration_ms": round(exchange.seconds * 1000, 1),
        "ttft_ms": None if first_byte is None else round(first_byte * 1000, 1),
        "bytes_in": exchange.bytes_received,
        "bytes_out": exchange.bytes_sent,
        "request_id": exchange.request_id,
        "project_id": caller and caller.project_id,
        "key_id": caller and caller.key_id,
        "model": scope.get(MODEL, "")[:_LONGEST_TEXT] or None,
        "client": scope["client"][0] if scope["client"] else None,
        "trace_id": trace_id(),
    }
    log.info("request", extra={name: value for name, value in fields.items() if value is not None})


def write_refusal(status: int, request_id: str, client: str | None) -> None:
    """Write the line of a connection that was closed before it had sent the headers of a request."""
    log.info("connection refused", extra={"status": status, "request_id": request_id, "client": client})
