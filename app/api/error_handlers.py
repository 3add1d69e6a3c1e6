"""Answers every exception in OpenAI's error envelope, the framework's own included."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from app.core.errors import ConflictError, ErrorBody, InvalidRequestError, ToqueError, UnavailableError

log = logging.getLogger("toque.errors")

_LONGEST_PARAM = 255
"""The most characters of a path that are quoted, since a client chooses some of its parts."""


def error_response(error: ToqueError) -> Response:
    """Return the response that tells of the error."""
    return _envelope(error.body, error.status, error.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Make the app answer every exception in the envelope."""
    app.add_exception_handler(ToqueError, _on_toque_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(OperationalError, _on_database_error)
    app.add_exception_handler(InternalError, _on_database_error)
    app.add_exception_handler(PoolTimeoutError, _on_database_error)
    app.add_exception_handler(DBAPIError, _on_statement_error)
    app.add_exception_handler(UnicodeEncodeError, _on_unencodable_text)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_toque_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ToqueError)
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return error_response(
            InvalidRequestError(f"The body is not valid JSON: {reason}", code="invalid_json")
        )
    path = _param_path(first["loc"], error.body)[:_LONGEST_PARAM]
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(
        first["type"]
    )
    subject = f"Invalid value for '{path}'" if path else "Invalid request"
    if first["type"] == "missing":
        subject = f"Missing required parameter '{path}'" if path else "The request has no body"
    elif first["type"] == "extra_forbidden":
        subject = f"Unknown parameter '{path}'"
    message = f"{subject}: {first['msg']}." if code is None else f"{subject}."
    return error_response(InvalidRequestError(message, code=code or "invalid_value", param=path or None))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ToqueError):  # raised while the framework read the body
        return error_response(error.__cause__)
    messages = {
        404: f"Unknown URL: {request.method} {request.url.path}. The API's routes are under /v1; see /docs.",
        405: f"{request.method} is not allowed here.",
        400: f"The request cannot be read: {error.detail}.",
    }
    body = ErrorBody(
        message=messages.get(error.status_code, str(error.detail)),
        type="invalid_request_error" if error.status_code < 500 else "server_error",
        code={400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code),
    )
    return _envelope(body, error.status_code, error.headers)


async def _on_database_error(_request: Request, error: Exception) -> Response:
    log.error("database unavailable: %s", error)
    return error_response(
        UnavailableError("The database cannot be reached; try again.", code="database_unavailable")
    )


async def _on_statement_error(request: Request, error: Exception) -> Response:
    if isinstance(error, IntegrityError):
        log.warning("conflicting write: %s", error)
        conflict = ConflictError("Another request is changing the same object; try again.", code="conflict")
        conflict.headers["x-should-retry"] = "true"
        return error_response(conflict)
    if isinstance(error, DataError):  # NUL characters, numbers out of range
        return error_response(
            InvalidRequestError(
                "A value in the request cannot be stored: a NUL character?", code="invalid_value"
            )
        )
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return await _on_database_error(request, error)
    return await _on_unexpected(request, error)


async def _on_unencodable_text(_request: Request, _error: Exception) -> Response:
    problem = "A text in the request contains an unpaired surrogate, which is not a valid Unicode character."
    return error_response(InvalidRequestError(problem, code="invalid_value"))


async def _on_unexpected(_request: Request, error: Exception) -> Response:
    log.exception("unexpected error", exc_info=error)
    return error_response(ToqueError("An internal error; the service's log has it under this request's id."))


def _param_path(location: tuple[int | str, ...], body: Any) -> str:
    """Write `("body", "messages", 0, "role")` as `messages[0].role`.

    In a union, pydantic's location also names the branch, by its own name or by the object's `type`. That is
    no place in the body, so it is left out.
    """
    path, place = "", body
    for position, part in enumerate(location[1:], start=2):
        if isinstance(part, int) and isinstance(place, list):
            path += f"[{part}]"
            place = cast("list[Any]", place)[part]
        elif isinstance(part, str) and isinstance(place, dict):
            known = cast("dict[str, Any]", place)
            is_branch = known.get("type") == part and not isinstance(known.get(part), dict | list)
            if position < len(location) and (part not in known or is_branch):
                continue
            path += f".{part}" if path else part
            place = known.get(part)
        elif location[0] != "body" and position == 2:
            path = str(part)
    return path


def _envelope(body: ErrorBody, status: int, headers: Mapping[str, str] | None) -> Response:
    # ASCII, because a message may quote half a surrogate pair, which UTF-8 cannot carry.
    content = json.dumps({"error": body.model_dump()}, ensure_ascii=True)
    return Response(content, status, headers, media_type="application/json")
