"""Talks to one vLLM: requests sent, answers taken, the answers it refuses with told apart."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import aiohttp
import orjson
from yarl import URL

from app.core.errors import InvalidRequestError, ToqueError, UnavailableError

MODEL_NOT_LOADED = "model_not_loaded"
_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 3.0
"""Less than vLLM's 5, or requests would be sent on connections that it is just closing."""


class RetryableError(Exception):
    """The engine gave not one byte of an answer: another may be asked.

    `error` is what to say if there is none; `is_gone`: nobody listens where the engine was.
    """

    def __init__(self, error: ToqueError, *, is_gone: bool = False) -> None:
        super().__init__(error.body.message)
        self.error = error
        self.is_gone = is_gone


class VllmConnection:
    """The connections to one engine, kept open and shared by all requests of this process."""

    def __init__(self, url: str, api_key: str, read_timeout: float) -> None:
        self.url = url
        self.api_key = api_key
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=read_timeout
        )
        self._session: aiohttp.ClientSession | None = None
        self._base = "http://engine" if url.startswith("unix:") else url.rstrip("/")
        self._urls: dict[str, URL] = {}

    async def post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """The answer to `POST path`, as far as its headers; the caller closes it.

        Raises:
            RetryableError: the engine is unreachable, sent no byte of an answer, or has no such model.
            UnavailableError: it said nothing in time, or failed on this request.
            InvalidRequestError: it refused the request.
        """
        with _errors():
            answer = await self._open_session().post(
                self._url(path), data=body, headers={"content-type": "application/json"}
            )
        if answer.status == 200:
            return answer
        refusal = await _refusal(answer)
        if answer.status in (401, 403, 404):
            raise RetryableError(refusal)
        raise refusal

    async def read_all(self, answer: aiohttp.ClientResponse) -> bytes:
        """The whole of an answer.

        Raises:
            RetryableError: the engine broke it off; nobody has seen any of it yet.
            UnavailableError: it went silent.
        """
        with _errors():
            return await answer.read()

    async def read_some(self, answer: aiohttp.ClientResponse) -> bytes:
        """The first bytes of an answer; raises as `read_all` does."""
        with _errors():
            return await answer.content.readany()

    async def healthy(self) -> bool:
        """Whether the engine says that it is well.

        Raises:
            TimeoutError: it says nothing.
        """
        timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
        try:
            async with self._open_session().get(self._url("/health"), timeout=timeout) as answer:
                return answer.status == 200
        except TimeoutError:  # some of aiohttp's are of both kinds
            raise
        except (aiohttp.ClientError, ValueError):
            return False

    async def metrics(self) -> str:
        """What the engine counts, in Prometheus's text format; raises as `adapters` does."""
        return (await self._get("/metrics")).decode("utf-8", "replace")

    async def adapters(self) -> list[str]:
        """The adapters that the engine has in its memory; only engines of ours say.

        Raises:
            ConnectionError: it cannot be reached, or does not say.
            TimeoutError: it says nothing.
        """
        return list(map(str, orjson.loads(await self._get("/toque/adapters"))["adapters"]))

    async def _get(self, path: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
        try:
            async with self._open_session().get(self._url(path), timeout=timeout) as answer:
                answer.raise_for_status()
                return await answer.read()
        except TimeoutError:
            raise TimeoutError("it does not answer") from None
        except aiohttp.ClientResponseError as error:
            raise ConnectionError(f"it does not say (status {error.status})") from None
        except aiohttp.ClientError:
            raise ConnectionError("it cannot be reached") from None

    async def close(self) -> None:
        """Ends every connection."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            keep = _KEEP_ALIVE_SECONDS
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(
                    self.url.removeprefix("unix:"), limit=0, keepalive_timeout=keep
                )
                if self.url.startswith("unix:")
                else aiohttp.TCPConnector(limit=0, keepalive_timeout=keep),
                timeout=self._timeout,
                headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else None,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("accept", "accept-encoding", "user-agent"),
            )
        return self._session

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self._base + path)
        return url


def broken_off() -> UnavailableError:
    """The error of an answer that did not end as it should."""
    return UnavailableError("The engine broke off its answer.", code="engine_unavailable")


@contextmanager
def _errors() -> Generator[None]:
    """Of connections, as those of this module."""
    try:
        yield
    except aiohttp.SocketTimeoutError as error:
        raise UnavailableError("The engine did not answer in time.", code="engine_timeout") from error
    except (aiohttp.ClientConnectorError, ValueError) as error:  # nobody there, or no URL at all
        raise RetryableError(unreachable(), is_gone=True) from error
    except aiohttp.ClientError as error:
        raise RetryableError(unreachable()) from error


def unreachable() -> UnavailableError:
    """The error of an engine that does not answer."""
    message = "The engine cannot be reached; it may be restarting."
    return UnavailableError(message, code="engine_unavailable")


async def _refusal(answer: aiohttp.ClientResponse) -> ToqueError:
    """vLLM's error as one of ours."""
    try:
        content: Any = orjson.loads(await answer.read())
        error = content.get("error", content)
        message, param = str(error.get("message", "")), error.get("param")
    except (ValueError, AttributeError, aiohttp.ClientError):
        message, param = "", None
    finally:
        answer.release()
    if answer.status == 404:
        return UnavailableError("The engine cannot load this model now.", code=MODEL_NOT_LOADED)
    if answer.status < 500 and answer.status not in (401, 403):
        too_long = "maximum context length" in message or "longer than the maximum model length" in message
        return InvalidRequestError(
            message or "The engine refused the request.",
            code="context_length_exceeded" if too_long else "invalid_value",
            param=param if isinstance(param, str) else None,
        )
    return UnavailableError("The engine failed on this request.", code="engine_error")
