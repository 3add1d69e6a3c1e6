"""Every exception leaves the service in the envelope, the framework's own included."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from app.errors import ConflictError, ErrorBody, InvalidRequestError, ToqueError, UnavailableError

log = logging.getLogger("toque.errors")


def error_response(error: ToqueError) -> JSONResponse:
    """The error as it goes over the wire."""
    return JSONResponse({"error": error.body.model_dump()}, error.status, error.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Makes the app answer every exception in the envelope."""
    app.add_exception_handler(ToqueError, _on_toque_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(OperationalError, _on_database_error)
    app.add_exception_handler(PoolTimeoutError, _on_database_error)
    app.add_exception_handler(DBAPIError, _on_statement_error)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_toque_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ToqueError)
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return error_response(
            InvalidRequestError(f"The body is not valid JSON: {reason}", code="invalid_json")
        )
    path = _param_path(first["loc"])
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


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"Unknown URL: {request.method} {request.url.path}. The API's routes are under /v1; see /docs.",
        405: f"{request.method} is not allowed here.",
        400: f"The request cannot be read: {error.detail}.",
    }
    body = ErrorBody(
        message=messages.get(error.status_code, str(error.detail)),
        type="invalid_request_error" if error.status_code < 500 else "server_error",
        code={404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code),
    )
    return JSONResponse({"error": body.model_dump()}, error.status_code, error.headers)


async def _on_database_error(_request: Request, error: Exception) -> JSONResponse:
    log.error("database unavailable: %s", error)
    return error_response(
        UnavailableError("The database cannot be reached; try again.", code="database_unavailable")
    )


async def _on_statement_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, IntegrityError):
        log.warning("conflicting write: %s", error)
        return error_response(ConflictError("Another request changed the same object.", code="conflict"))
    if isinstance(error, DataError):  # NUL characters, numbers out of range
        return error_response(
            InvalidRequestError(
                "A value in the request cannot be stored: a NUL character?", code="invalid_value"
            )
        )
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return await _on_database_error(request, error)
    return await _on_unexpected(request, error)


async def _on_unexpected(_request: Request, error: Exception) -> JSONResponse:
    log.exception("unexpected error", exc_info=error)
    return error_response(ToqueError("An internal error; the service's log has it under this request's id."))


def _param_path(location: tuple[int | str, ...]) -> str:
    """`("body", "messages", 0, "role")` as `messages[0].role`."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path
