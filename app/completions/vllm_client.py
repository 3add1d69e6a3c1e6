"""An HTTP client for one vLLM server, which turns its failures and refusals into errors of ours."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager

import aiohttp
import orjson
from yarl import URL

from app.completions.engine_refusals import MODEL_NOT_LOADED, translate_refusal
from app.core.errors import ToqueError, UnavailableError
from app.core.tracing import trace_headers

_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 2.0
_LARGE_BODY = 2**20
"""From this size on, aiohttp sends a body in pieces if it is given as a file, and warns if it is not."""
_KEEP_ALIVE_SECONDS = 3.0
"""Less than vLLM's 5 seconds, so that no request is sent on a connection that vLLM is closing."""


class RetryableError(Exception):
    """The engine sent no byte of an answer, so that another engine may be asked.

    `error` is what to report if there is no other; `is_gone` says that nothing listens at the address.
    """

    def __init__(self, error: ToqueError, *, is_gone: bool = False) -> None:
        super().__init__(error.body.message)
        self.error = error
        self.is_gone = is_gone


class VllmConnection:
    """The pool of connections to one engine, which all requests of this process share."""

    def __init__(self, url: str, api_key: str, read_timeout: float) -> None:
        self.url = url
        self.api_key = api_key
        self._timeout = _timeout(read_timeout)
        self._session: aiohttp.ClientSession | None = None
        self._base = "http://engine" if url.startswith("unix:") else url.rstrip("/")
        self._urls: dict[str, URL] = {}

    async def post(
        self, path: str, body: bytes, *, read_timeout: float | None = None
    ) -> aiohttp.ClientResponse:
        """Sends a request, and returns the response once its headers are there; the caller closes it.

        `read_timeout` is the longest silence in seconds, if it is another than that of the connection.

        Raises:
            RetryableError: the engine is unreachable, sent no byte of an answer, or has no such model.
            UnavailableError: the engine timed out, or failed on this request.
            InvalidRequestError: the engine refused the request.
        """
        with _translate_errors():
            answer = await self._open_session().post(
                self._url(path),
                data=body if len(body) < _LARGE_BODY else io.BytesIO(body),
                headers={"content-type": "application/json"} | trace_headers(),
                timeout=self._timeout if read_timeout is None else _timeout(read_timeout),
            )
        if answer.status == 200:
            return answer
        refusal = await _refusal(answer, body)
        if refusal.body.code == MODEL_NOT_LOADED or answer.status in (401, 403):
            raise RetryableError(refusal)
        raise refusal

    async def read_all(self, answer: aiohttp.ClientResponse) -> bytes:
        """Returns the whole body of a response.

        Raises:
            RetryableError: the connection broke; the client has seen nothing of the answer yet.
            UnavailableError: the engine timed out.
        """
        with _translate_errors():
            return await answer.read()

    async def read_some(self, answer: aiohttp.ClientResponse) -> bytes:
        """Returns the next bytes of a response; raises the errors of `read_all`."""
        with _translate_errors():
            return await answer.content.readany()

    async def healthy(self) -> bool:
        """Returns whether the engine reports that it is healthy.

        Raises:
            TimeoutError: the engine did not answer in time.
        """
        timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
        try:
            async with self._open_session().get(self._url("/health"), timeout=timeout) as answer:
                return answer.status == 200
        except TimeoutError:  # some of aiohttp's timeouts are ClientErrors too
            raise
        except (aiohttp.ClientError, ValueError):
            return False

    async def metrics(self) -> str:
        """Returns the engine's metrics in Prometheus's text format; raises the errors of `adapters`."""
        return (await self._get("/metrics")).decode("utf-8", "replace")

    async def adapters(self) -> list[str]:
        """Returns the adapters in the engine's memory, which only engines of ours report.

        Raises:
            ConnectionError: the engine cannot be reached, or has no such route.
            TimeoutError: the engine did not answer in time.
        """
        return list(map(str, orjson.loads(await self._get("/toque/load"))["adapters"]))

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
        """Closes every connection."""
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


def _timeout(read_timeout: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=read_timeout)


def broken_off() -> UnavailableError:
    """Returns the error for an answer that broke off."""
    return UnavailableError("The engine broke off its answer.", code="engine_unavailable")


@contextmanager
def _translate_errors() -> Generator[None]:
    """Translates aiohttp's errors into this module's."""
    try:
        yield
    except aiohttp.SocketTimeoutError as error:
        raise UnavailableError("The engine did not answer in time.", code="engine_timeout") from error
    except (
        aiohttp.ClientConnectorError,
        ValueError,
    ) as error:  # nothing listens there, or the URL is malformed
        raise RetryableError(unreachable(), is_gone=True) from error
    except aiohttp.ClientError as error:
        raise RetryableError(unreachable()) from error


def unreachable() -> UnavailableError:
    """Returns the error for an engine that does not answer."""
    message = "The engine cannot be reached; it may be restarting."
    return UnavailableError(message, code="engine_unavailable")


async def _refusal(answer: aiohttp.ClientResponse, request: bytes) -> ToqueError:
    """Returns the error for an answer whose status is not 200."""
    try:
        content = await answer.read()
    except aiohttp.ClientError:
        content = b""
    finally:
        answer.release()
    return translate_refusal(answer.status, content, request)
