"""Errors inside the console: as a page, or as an alert on the page that is there."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response

from app.console.page import is_htmx, page_of, redirect, render
from app.console.session import changes
from app.core.errors import ErrorBody
from app.core.scope import REQUEST_ID

SIGN_IN = "/console/sign-in"
_IN_PLACE = {
    "hx-retarget": "#alerts",
    "hx-reswap": "innerHTML",
    "hx-reselect": "unset",
    "hx-push-url": "false",
}
"""Has htmx show an answer as an alert, whatever it was asked to do with it."""


def is_in_console(request: Request) -> bool:
    """Whether a request is for the console."""
    return request.scope["path"] == "/console" or request.scope["path"].startswith("/console/")


def error_page(request: Request, body: ErrorBody, status: int, headers: Mapping[str, str] | None) -> Response:
    """Return what a browser shows of an error; who is not signed in is sent to do so."""
    if status == HTTPStatus.UNAUTHORIZED:
        return redirect(request, sign_in_url(request))
    template = "_error.html.jinja" if is_htmx(request) else "error.html.jinja"
    values = {
        "error": body,
        "status": status,
        "is_part": is_htmx(request),
        "title": HTTPStatus(status).phrase,
        "request_id": request.scope.get(REQUEST_ID, ""),
    }
    response = render(request, template, values, status=status, page=page_of(request))
    response.headers.update(headers or {})
    if is_htmx(request):
        response.headers.update(_IN_PLACE)
    return response


def sign_in_url(request: Request) -> str:
    """Return where to sign in, and then go on."""
    path = request.headers.get("hx-current-url", "") if is_htmx(request) else ""
    if not path and not changes(request):
        path = f"{request.url.path}?{request.url.query}".rstrip("?")
    return f"{SIGN_IN}?next={quote(own_path(path), safe='')}"


def own_path(address: str) -> str:
    """Return the path of an address if it is that of a page of the console, else that of the first page."""
    path = "/" + address.partition("://")[2].partition("/")[2] if "://" in address else address
    is_own = path == "/console" or path.startswith(("/console/", "/console?"))
    is_safe = is_own and path.isprintable() and "\\" not in path and not path.startswith(SIGN_IN)
    return path if is_safe else "/console"
