"""Sessions: who signs in with an API key gets a signed cookie in its place.

The signature is made with the digest that is stored of the key, so a session needs no row of its own, and
ends with its key: when that is revoked or expires. The token that every change needs beside the cookie (CSRF)
is a signature of the cookie itself.
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from anyio import CapacityLimiter
from fastapi import Request, Response
from itsdangerous import BadSignature, Signer, TimestampSigner

from app.auth import service as auth_service
from app.auth.caller import Caller
from app.auth.key_cache import KeyCache
from app.core.database import Database
from app.core.errors import AuthenticationError, PermissionDeniedError
from app.core.stale_while_revalidate import StaleWhileRevalidate

COOKIE = "toque_session"
CSRF_HEADER = "x-csrf-token"
SESSION = "toque.session"
"""The key of a request's ASGI scope under which its `Session` is."""
_MOST_SECONDS = 12 * 3600
_LONGEST_COOKIE = 512
_LOOKUPS_AT_ONCE = 4
"""Few, as for the keys themselves (`app.auth.key_cache`)."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in."""

    caller: Caller
    key_name: str
    project_name: str
    csrf_token: str
    ends_at: float
    """Seconds since the epoch."""

    def check_token(self, token: str | None) -> None:
        """Make sure that a change comes from a page of this session.

        Raises:
            PermissionDeniedError: the token is missing, or is not this session's.
        """
        if not token or not secrets.compare_digest(token.encode(), self.csrf_token.encode()):
            raise PermissionDeniedError(
                "This page is from an earlier session, so nothing was changed: reload it, and try again.",
                code="invalid_csrf_token",
            )


@dataclass(frozen=True, slots=True)
class _Key:
    caller: Caller
    name: str
    project_name: str
    digest: str


class Sessions:
    """Begins sessions, and recognizes them. What happens to keys takes effect within three seconds."""

    def __init__(self, database: Database, keys: KeyCache) -> None:
        self._database = database
        self._keys = keys
        self._known: StaleWhileRevalidate[str, _Key] = StaleWhileRevalidate(
            self._find_key,
            fresh_seconds=1.0,
            stale_seconds=3.0,
            limiter=CapacityLimiter(_LOOKUPS_AT_ONCE),
        )

    async def begin(self, secret: str) -> str:
        """Return the cookie of a new session with this API key.

        Raises:
            AuthenticationError: the key is not valid.
        """
        caller = await self._keys.authenticate(secret)
        return _signer(auth_service.digest(secret)).sign(caller.key_id).decode()

    async def resume(self, cookie: str) -> Session:
        """Return the session of a cookie.

        Raises:
            AuthenticationError: it has ended, or there is no such session.
        """
        if len(cookie) > _LONGEST_COOKIE:
            raise _ended()
        key = await self._known.get(cookie.partition(".")[0])
        try:
            _, begun = _signer(key.digest).unsign(cookie, _MOST_SECONDS, return_timestamp=True)
        except BadSignature as error:  # or one that is too old
            raise _ended() from error
        now = time.time()
        ends_at = min(begun.timestamp() + _MOST_SECONDS, key.caller.expires_at or float("inf"))
        if ends_at <= now:
            raise _ended()
        self._keys.last_uses.record(key.caller.key_id, now)
        return Session(key.caller, key.name, key.project_name, _csrf_token(key.digest, cookie), ends_at)

    def _find_key(self, key_id: str) -> _Key:
        with self._database.reader() as session:
            key = auth_service.find_valid_key(session, key_id)
            return _Key(auth_service.caller_with(key), key.name, key.project.name, key.key_sha256)


async def session_of(request: Request) -> Session | None:
    """Return the session whose cookie a request has; None if it has none.

    Raises:
        AuthenticationError: the session has ended, or there is no such session.
    """
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        return None
    return await cast("Sessions", request.app.state.sessions).resume(cookie)


def session_in(scope: Mapping[str, Any]) -> Session | None:
    """Return the session of a request, by its ASGI scope; None if nobody is signed in."""
    return cast("Session | None", scope.get(SESSION))


def changes(request: Request) -> bool:
    """Whether a request may change something, by its method."""
    return request.method not in _SAFE_METHODS


def check_origin(request: Request) -> None:
    """Make sure that a change is not asked for by a page of another site.

    Raises:
        PermissionDeniedError: the browser says that it is.
    """
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    is_foreign = site not in {"same-origin", "none"} if site else _is_foreign(origin, request)
    if changes(request) and is_foreign:
        raise PermissionDeniedError(
            "A page of another site cannot change anything here.", code="other_origin"
        )


def set_cookie(response: Response, request: Request, value: str) -> None:
    """Give the browser the cookie of a session; browsers send it over TLS only if it came over TLS."""
    response.set_cookie(
        COOKIE,
        value,
        max_age=_MOST_SECONDS,
        path="/",
        secure=is_secure(request),
        httponly=True,
        samesite="strict",
    )


def delete_cookie(response: Response, request: Request) -> None:
    """Take the session's cookie from the browser."""
    response.delete_cookie(COOKIE, path="/", secure=is_secure(request), httponly=True, samesite="strict")


def is_secure(request: Request) -> bool:
    """Whether the browser came over TLS, which may end at a proxy; a lie only harms the one who tells it."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


def _is_foreign(origin: str | None, request: Request) -> bool:
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


def _signer(digest: str) -> TimestampSigner:
    return TimestampSigner(digest, salt="toque.console.session", digest_method=hashlib.sha256)


def _csrf_token(digest: str, cookie: str) -> str:
    return (
        Signer(digest, salt="toque.console.csrf", digest_method=hashlib.sha256).get_signature(cookie).decode()
    )


def _ended() -> AuthenticationError:
    return AuthenticationError(
        "The session has ended; sign in again.", code="session_ended", is_rejected=True
    )
