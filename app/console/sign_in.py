"""Signing in with an API key, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from app.console import session
from app.console.error_page import SIGN_IN, own_path
from app.console.page import PageDep, redirect, render
from app.core.errors import AuthenticationError

router = APIRouter(include_in_schema=False)


@router.get(SIGN_IN)
async def read_form(request: Request, next: str = "/console") -> Response:  # noqa: A002 - the field's name
    """Ask for a key, unless somebody is signed in."""
    if session.session_in(request.scope):
        return redirect(request, own_path(next))
    return _form(request, next)


@router.post(SIGN_IN)
async def sign_in(
    request: Request,
    api_key: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/console",  # noqa: A002 - the field's name
) -> Response:
    """Begin a session."""
    session.check_origin(request)
    try:
        cookie = await request.app.state.sessions.begin(api_key.strip())
    except AuthenticationError as error:
        problem = error.body.message if api_key.strip() else "Paste an API key."
        return _form(request, next, problem, error.status)
    response = redirect(request, own_path(next))
    session.set_cookie(response, request, cookie)
    return response


@router.post("/console/sign-out")
async def sign_out(page: PageDep) -> Response:
    """End the session in this browser."""
    response = page.redirect(SIGN_IN)
    session.delete_cookie(response, page.request)
    return response


def _form(request: Request, after: str, problem: str | None = None, status: int = 200) -> Response:
    values = {"next": own_path(after), "problem": problem}
    return render(request, "sign_in.html.jinja", values, status=status)
