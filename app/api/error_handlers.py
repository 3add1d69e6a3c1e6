"""Answers every exception in OpenAI's error envelope, the framework's own included."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from app.console.error_page import error_page, is_in_console
from app.core.database import is_damaged, lacks_table
from app.core.errors import ConflictError, ErrorBody, InvalidRequestError, ToqueError, UnavailableError
from app.core.migrations import OUTDATED
from app.core.validation_errors import validation_error

log = logging.getLogger("toque.errors")


def error_response(error: ToqueError) -> Response:
    """Return the response that tells of the error."""
    return _envelope(_answer(error))


def install_error_handlers(app: FastAPI) -> None:
    """Make the app answer every exception in the envelope, and inside the console as a page."""
    for kind in _HANDLERS:
        app.add_exception_handler(kind, respond_to)


async def respond_to(request: Request, error: Exception) -> Response:
    """Return the response that tells of the error, for middleware that the app's handlers are behind."""
    handler = next(_HANDLERS[kind] for kind in type(error).__mro__ if kind in _HANDLERS)
    answer = handler(request, error)
    return error_page(request, *answer) if is_in_console(request) else _envelope(answer)


class _Answer(NamedTuple):
    """What a request is told of an error."""

    body: ErrorBody
    status: int
    headers: Mapping[str, str] | None


def _answer(error: ToqueError) -> _Answer:
    return _Answer(error.body, error.status, error.headers)


def _on_toque_error(_request: Request, error: Exception) -> _Answer:
    assert isinstance(error, ToqueError)
    return _answer(error)


def _on_validation_error(_request: Request, error: Exception) -> _Answer:
    assert isinstance(error, RequestValidationError)
    return _answer(validation_error(error.errors(), error.body))


def _on_http_exception(request: Request, error: Exception) -> _Answer:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ToqueError):  # raised while the framework read the body
        return _answer(error.__cause__)
    known = (
        "The console has no such page."
        if is_in_console(request)
        else "The API's routes are under /v1 (see /docs), and the console is at /console."
    )
    messages = {
        404: f"Unknown URL: {request.method} {request.url.path}. {known}",
        405: f"{request.method} is not allowed here.",
        400: _unreadable(error),
    }
    body = ErrorBody(
        message=messages.get(error.status_code, str(error.detail)),
        type="invalid_request_error" if error.status_code < 500 else "server_error",
        code={400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code),
    )
    headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else error.headers
    return _Answer(body, error.status_code, headers)


def _allowed_methods(request: Request) -> str:
    """Return the methods of all routes with the request's path; Starlette knows those of one route."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    found = [route.methods or () for route in routes if route.path_regex.match(request.url.path)]
    return ", ".join(sorted(set(chain.from_iterable(found))))


def _unreadable(error: HTTPException) -> str:
    """Return what is wrong with a body that the framework cannot parse."""
    is_deep = isinstance(error.__cause__, RecursionError)
    return "The body is nested too deep." if is_deep else f"The request cannot be read: {error.detail}."


def _on_database_error(_request: Request, error: Exception) -> _Answer:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if lacks_table(cause):
        log.error("%s: %s", OUTDATED, error)
        return _answer(
            UnavailableError(
                "The database's schema is not that of this version: the operator has to run "
                "`toque db upgrade`.",
                code="database_outdated",
            )
        )
    if is_damaged(cause):
        log.error(
            "the file of SQLite's database is damaged: stop the service, restore a backup of the database "
            "and of the storage (docs/operations.md, Backup), and run `toque db check`: %s",
            error,
        )
    else:
        log.error("database unavailable: %s", error)
    return _answer(
        UnavailableError("The database cannot be reached; try again.", code="database_unavailable")
    )


def _on_statement_error(request: Request, error: Exception) -> _Answer:
    if isinstance(error, IntegrityError):
        log.warning("conflicting write: %s", error)
        conflict = ConflictError("Another request is changing the same object; try again.", code="conflict")
        conflict.headers["x-should-retry"] = "true"
        return _answer(conflict)
    if isinstance(error, DataError):  # NUL characters, numbers out of range
        return _answer(
            InvalidRequestError(
                "A value in the request cannot be stored: a NUL character?", code="invalid_value"
            )
        )
    if isinstance(error, DBAPIError) and (
        error.connection_invalidated or is_damaged(error.orig) or lacks_table(error.orig)
    ):
        return _on_database_error(request, error)
    return _on_unexpected(request, error)


def _on_unencodable_text(_request: Request, _error: Exception) -> _Answer:
    problem = "A text in the request contains an unpaired surrogate, which is not a valid Unicode character."
    return _answer(InvalidRequestError(problem, code="invalid_value"))


def _on_unexpected(_request: Request, error: Exception) -> _Answer:
    log.exception("unexpected error", exc_info=error)
    return _answer(ToqueError("An internal error; the service's log has it under this request's id."))


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], _Answer]] = {
    ToqueError: _on_toque_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
    OperationalError: _on_database_error,
    InternalError: _on_database_error,
    PoolTimeoutError: _on_database_error,
    DBAPIError: _on_statement_error,
    UnicodeEncodeError: _on_unencodable_text,
    Exception: _on_unexpected,
}


def _envelope(answer: _Answer) -> Response:
    # ASCII, because a message may quote half a surrogate pair, which UTF-8 cannot carry.
    content = json.dumps({"error": answer.body.model_dump()}, ensure_ascii=True)
    return Response(content, answer.status, answer.headers, media_type="application/json")
