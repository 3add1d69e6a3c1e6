"""Sends requests to webhook endpoints, which may be anybody's: slow, endless, or not where they say."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from anyio import CapacityLimiter, to_thread
from typing_extensions import override
from yarl import URL

from app import __version__
from app.core.control_characters import visible
from app.core.settings import Settings
from app.webhooks.addresses import AddressNotAllowedError, require_allowed

TIMEOUT_SECONDS = 10.0
"""The time from looking up the name to the end of the answer that is read."""
_KEPT_BYTES = 500
_MOST_LOOKUPS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    status_code: int | None
    """None if there was no answer."""
    body: str | None
    """The beginning of the answer's body."""
    error: str | None = None
    """Why there was no answer."""

    @property
    def is_success(self) -> bool:
        """Whether the endpoint has taken the event."""
        return self.status_code is not None and 200 <= self.status_code < 300


class WebhookClient:
    """This process's connections to webhook endpoints: a new one for each request."""

    def __init__(self, settings: Settings) -> None:
        self._private_networks = settings.webhook_private_networks
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send a request, and read no more of the answer than is kept. Redirects are not followed."""
        try:
            async with self._open_session().post(
                URL(url), headers=headers, data=body, allow_redirects=False
            ) as response:
                content = b""
                with suppress(TimeoutError, aiohttp.ClientError):  # the status is answer enough
                    content = await response.content.read(_KEPT_BYTES)
                return Answer(response.status, visible(content.decode("utf-8", "replace")))
        except TimeoutError:
            return Answer(None, None, f"There was no answer within {TIMEOUT_SECONDS:g} s.")
        except aiohttp.ClientConnectorDNSError:
            return Answer(None, None, "The name of its host cannot be resolved.")
        except aiohttp.ClientConnectorError as error:
            return Answer(None, None, f"It cannot be connected to: {_reason(error)}.")
        except (aiohttp.ClientError, ValueError) as error:
            return Answer(None, None, f"It did not send a valid HTTP response ({type(error).__name__}).")

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0,  # whoever sends bounds that
                force_close=True,
                use_dns_cache=False,
                resolver=_Resolver(),
                socket_factory=self._make_socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                headers={"user-agent": f"Toque/{__version__}", "accept-encoding": "identity"},
                auto_decompress=False,
            )
        return self._session

    def _make_socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """Make the socket that is connected to an address next, if it is one that may be connected to.

        Raises:
            AddressNotAllowedError: it is not.
        """
        family, type_, protocol, _, address = address_info
        require_allowed(address[0], self._private_networks)
        return socket.socket(family, type_, protocol)


class _Resolver(AbstractResolver):
    """Looks names up in threads of its own, so that slow name servers hold up nothing else."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(_MOST_LOOKUPS)

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await to_thread.run_sync(
            lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM),
            limiter=self._limiter,
            abandon_on_cancel=True,
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for found_family, _, protocol, _, address in found
        ]

    @override
    async def close(self) -> None:
        """There is nothing to close."""


def _reason(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not valid"
    if isinstance(error.os_error, AddressNotAllowedError):
        return str(error.os_error)
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS cannot be established"
    if error.os_error.errno:
        return os.strerror(error.os_error.errno)
    return error.os_error.strerror or type(error.os_error).__name__
