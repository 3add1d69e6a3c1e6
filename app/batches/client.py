"""Asks one request of a batch through the gateway."""

from __future__ import annotations

import logging
from typing import Any, cast

import orjson

from app.batches.input_file import REQUESTS, LineInvalidError, Request, parse_body
from app.batches.output_line import answer_line, refusal_line
from app.completions.gateway import Gateway
from app.completions.retrying import engine_retrying
from app.core.errors import InvalidRequestError, ToqueError

log = logging.getLogger("toque.batches")


class BatchClient:
    """Sends the requests of one batch."""

    def __init__(self, gateway: Gateway, project_id: str, endpoint: str) -> None:
        self._gateway = gateway
        self._project_id = project_id
        self._kind = REQUESTS[endpoint]

    async def answer(self, request: Request) -> dict[str, Any]:
        """Return the columns of the request's `BatchAnswer`. Engines that are away are waited for."""
        try:
            answer = await self._ask(request)
        except ToqueError as error:
            return _columns(request, refusal_line(request, error), None)
        except Exception:
            log.exception("a request of a batch failed")
            error = ToqueError("An internal error; the service's log has it.", code="internal_error")
            return _columns(request, refusal_line(request, error), None)
        return _columns(request, answer_line(request, answer), orjson.loads(answer).get("usage") or {})

    async def _ask(self, request: Request) -> bytes:
        try:
            body = parse_body(self._kind, request.body)
        except LineInvalidError as error:  # a rule that is newer than the batch's validation
            raise InvalidRequestError(error.message, code=error.code, param=error.param) from None
        return await engine_retrying()(self._gateway.ask, self._project_id, body, in_background=True)


def _columns(request: Request, line: bytes, usage: dict[str, Any] | None) -> dict[str, Any]:
    """Return the columns; `usage` is that of a completion or of a response, None for what has failed."""
    counts = usage or {}
    inputs, outputs = (
        cast("dict[str, Any]", counts.get(f"{new}_details") or counts.get(f"{old}_details") or {})
        for new, old in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))
    )
    return {
        "number": request.number,
        "line": line,
        "failed": usage is None,
        "input_tokens": counts.get("input_tokens", counts.get("prompt_tokens")) or 0,
        "cached_tokens": inputs.get("cached_tokens") or 0,
        "output_tokens": counts.get("output_tokens", counts.get("completion_tokens")) or 0,
        "reasoning_tokens": outputs.get("reasoning_tokens") or 0,
    }
