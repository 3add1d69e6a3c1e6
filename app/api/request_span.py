"""The span of a request, with the attributes of OpenTelemetry's conventions.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from app.api.exchange import Exchange
from app.auth.caller import Caller
from app.core.scope import CALLER, MODEL
from app.core.tracing import is_tracing, span

_TRACED = "/v1/"


@contextmanager
def request_span(exchange: Exchange) -> Generator[None]:
    """Record a request under /v1; it belongs to the caller's trace, if its headers name one."""
    scope = exchange.scope
    if not is_tracing() or not scope["path"].startswith(_TRACED):
        yield
        return
    method = scope["method"]
    known = {"http.request.method": method, "toque.request_id": exchange.request_id}
    with span(method, known, kind="SERVER", parent=exchange.headers) as recorded:
        yield
        if recorded is None:
            return
        recorded.update_name(f"{method} {exchange.route}" if exchange.route else method)
        recorded.set_attribute("http.response.status_code", exchange.status)
        caller = cast("Caller | None", scope.get(CALLER))
        found = {
            "http.route": exchange.route,
            "client.address": scope["client"] and scope["client"][0],
            "gen_ai.response.model": scope.get(MODEL),
            "toque.project_id": caller and caller.project_id,
            "toque.key_id": caller and caller.key_id,
        }
        recorded.set_attributes({name: value for name, value in found.items() if value is not None})
