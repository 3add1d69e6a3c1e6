"""Other services' endpoints that speak OpenAI's API; the operator lists those that may be asked."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import aiohttp
import orjson

from app.core.errors import InvalidRequestError, ToqueError, UnavailableError
from app.core.settings import Settings

_MOST_BYTES = 16 * 2**20
_CONNECT_SECONDS = 10.0
_SHORTEST_KEY = 12
"""The length from which a key is looked for in answers; a shorter one is a placeholder, such as `none`."""


class Endpoint(NamedTuple):
    """The address of an external endpoint, and the key that it is sent."""

    base_url: str
    api_key: str | None


class EndpointAwayError(UnavailableError):
    """The endpoint cannot be reached or is busy, which passes by itself."""

    def __init__(self, message: str, *, pause: float = 0.0) -> None:
        super().__init__(message, code="external_unavailable")
        self.pause = pause
        """The seconds after which the endpoint wants to be asked again."""


class ExternalEndpoints:
    """This process's connections to external endpoints."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = aiohttp.ClientTimeout(total=settings.upstream_timeout, sock_connect=_CONNECT_SECONDS)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, endpoint: Endpoint, body: bytes) -> bytes:
        """Send a chat completion and return the whole answer.

        Raises:
            EndpointAwayError: the endpoint cannot be reached, or is busy.
            UnavailableError: it took too long, or failed.
            InvalidRequestError: it refused the request.
        """
        headers = {"content-type": "application/json"}
        if endpoint.api_key:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        try:
            # A redirect could lead to an address that the operator does not allow.
            async with self._open_session().post(
                f"{endpoint.base_url}/chat/completions", data=body, headers=headers, allow_redirects=False
            ) as answer:
                content = b""
                async for chunk in answer.content.iter_any():
                    content += chunk
                    if len(content) > _MOST_BYTES:
                        raise InvalidRequestError("The external endpoint's answer is too long to be one.")
        except aiohttp.ClientConnectionError as error:
            raise EndpointAwayError("The external endpoint cannot be reached.") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(
                "The external endpoint does not answer as it should.", code="external_failed"
            ) from error
        if endpoint.api_key and len(endpoint.api_key) >= _SHORTEST_KEY:
            content = _without(endpoint.api_key, content)
        if answer.status != 200:
            raise _refusal(answer.status, answer.headers.get("retry-after", ""), content)
        return content

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


def allowed_endpoint(settings: Settings, base_url: str) -> str | None:
    """Return the URL as the setting has it, or None if it is not allowed."""
    allowed = {url.rstrip("/") for url in settings.external_endpoints}
    return base_url.rstrip("/") if base_url.rstrip("/") in allowed else None


def _without(api_key: str, content: bytes) -> bytes:
    """Return a JSON document with the key left out, should the endpoint repeat what it was sent."""
    quoted = orjson.dumps(api_key)[1:-1]
    for written in {api_key.encode(), quoted, quoted.replace(b"/", b"\\/")}:
        content = content.replace(written, b"[redacted]")
    return content


def _refusal(status: int, retry_after: str, content: bytes) -> ToqueError:
    if status == 429 or status >= 502:
        return EndpointAwayError(
            f"The external endpoint is busy, or away (status {status}).", pause=_pause(retry_after)
        )
    if status in (408, 409) or status >= 500:
        return UnavailableError(f"The external endpoint failed (status {status}).", code="external_failed")
    try:
        parsed: Any = orjson.loads(content)
        message = str(parsed["error"]["message"])[:500]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = "it does not say why"
    return InvalidRequestError(
        f"The external endpoint refused the request (status {status}): {message}", code="external_refused"
    )


def _pause(retry_after: str) -> float:
    """Return the seconds that a `retry-after` header asks for; 0 if it is no number and no date."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
