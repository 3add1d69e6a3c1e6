"""What every page of the console needs: who is asking, and how a template becomes a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import UploadFile

from app.auth import service as auth_service
from app.auth.caller import Caller
from app.auth.roles import ALLOWED, Action
from app.console import filters, session
from app.console.assets import asset_url
from app.console.navigation import Section
from app.console.session import Session
from app.context import Context
from app.core.settings import Settings

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True, slots=True)
class Page:
    """A request of somebody who is signed in."""

    request: Request
    context: Context
    session: Session

    @property
    def caller(self) -> Caller:
        """Whose key the session began with."""
        return self.session.caller

    def may(self, action: Action) -> bool:
        """Whether the caller may do this: what they may not is not offered."""
        return self.caller.role in ALLOWED[action]

    def check(self, action: Action) -> None:
        """Make sure that the caller may do this.

        Raises:
            PermissionDeniedError: their role does not allow it.
        """
        self.caller.check_action(action)

    def render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page, or a part of one, made from a template; it sees the page itself as `page`."""
        return render(self.request, template, values, status=status, page=self)

    def redirect(self, path: str) -> Response:
        """Send the browser to another page, after a form or a request of htmx."""
        return redirect(self.request, path)


def page_of(request: Request) -> Page | None:
    """Return the page of a request; None if nobody is signed in."""
    signed_in = session.session_in(request.scope)
    if signed_in is None:
        return None
    settings = cast("Settings", request.app.state.settings)
    caller = signed_in.caller
    return Page(request, Context(caller.project_id, settings, request.app.state.storage, caller), signed_in)


async def _page(request: Request) -> Page:
    page = page_of(request)
    if page is None:
        raise auth_service.no_key()
    if session.changes(request):
        session.check_origin(request)
        page.session.check_token(await _token(request))
    return page


PageDep = Annotated[Page, Depends(_page, scope="function")]
"""For every route of the console: who is not signed in is sent to do so; no other site changes anything."""


async def _token(request: Request) -> str | None:
    """Return the token of a change, from its header or from a field of its form."""
    if token := request.headers.get(session.CSRF_HEADER):
        return token
    if not request.headers.get("content-type", "").startswith(_FORMS):
        return None
    field: UploadFile | str | None = (await request.form()).get("csrf_token")
    return field if isinstance(field, str) else None


def render(
    request: Request, template: str, values: Mapping[str, Any], *, status: int = 200, page: Page | None = None
) -> HTMLResponse:
    """Return a page made from a template, for somebody who is signed in or, without a page, anybody."""
    html = (
        _environment()
        .get_template(template)
        .render(
            **values,
            page=page,
            sections=_sections(request, page),
            path=request.url.path,
        )
    )
    return HTMLResponse(html, status, _HEADERS)


def redirect(request: Request, path: str) -> Response:
    """Send the browser to another page."""
    if is_htmx(request):
        return Response(status_code=204, headers={**_HEADERS, "hx-redirect": path})
    return RedirectResponse(path, 303, _HEADERS)


def is_htmx(request: Request) -> bool:
    """Whether a request is for a part of a page."""
    return request.headers.get("hx-request") == "true"


def _sections(request: Request, page: Page | None) -> Sequence[Section]:
    if page is None:
        return ()
    sections = cast("Sequence[Section]", request.app.state.sections)
    return [section for section in sections if section.is_for(page.caller)]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    cast("dict[str, Any]", environment.globals).update(asset=asset_url, Action=Action)
    environment.filters |= filters.FILTERS
    return environment
