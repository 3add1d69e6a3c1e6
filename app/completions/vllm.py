"""Talks to vLLM: one request forwarded, one answer passed back, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
from fastapi.responses import Response, StreamingResponse

from app.completions.models import Engine
from app.error_handlers import error_response
from app.errors import ErrorBody, InvalidRequestError, ToqueError, UnavailableError

_CONNECT_SECONDS = 5.0


class VllmClient:
    """Connections to every engine, kept open and shared by all requests of this process."""

    def __init__(self, read_timeout: float) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=read_timeout
        )
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def forward(self, engine: Engine, path: str, body: dict[str, Any]) -> Response:
        """The engine's answer to `POST path`.

        Raises:
            UnavailableError: the engine cannot be reached, or broke off before its first byte.
            InvalidRequestError: the engine refused the request.
        """
        session, base_url = self._session(engine.url)
        try:
            upstream = await session.post(
                base_url + path, json=body, headers={"authorization": f"Bearer {engine.api_key}"}
            )
        except TimeoutError as error:
            raise UnavailableError("The engine did not answer in time.", code="engine_timeout") from error
        except aiohttp.ClientError as error:
            raise UnavailableError(
                "The engine cannot be reached; it may be restarting.", code="engine_unavailable"
            ) from error
        if upstream.status != 200:
            return error_response(await _refusal(upstream))
        if body.get("stream"):
            return StreamingResponse(
                _stream(upstream), media_type="text/event-stream", headers={"cache-control": "no-cache"}
            )
        try:
            return Response(await upstream.read(), media_type="application/json")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError("The engine broke off its answer.", code="engine_unavailable") from error
        finally:
            upstream.release()

    async def close(self) -> None:
        """Ends every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _session(self, url: str) -> tuple[aiohttp.ClientSession, str]:
        session = self._sessions.get(url)
        socket_path = url.removeprefix("unix:") if url.startswith("unix:") else None
        if session is None:
            connector = (
                aiohttp.UnixConnector(socket_path, limit=0) if socket_path else aiohttp.TCPConnector(limit=0)
            )
            session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, json_serialize=_dumps)
            self._sessions[url] = session
        return session, "http://engine" if socket_path else url


async def _stream(upstream: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Bytes as they come. A client that leaves closes this generator, and with it the engine's work."""
    try:
        async for chunk in upstream.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, TimeoutError):
        body = ErrorBody(
            message="The engine broke off its answer.", type="server_error", code="engine_unavailable"
        )
        yield b"data: " + json.dumps({"error": body.model_dump()}).encode() + b"\n\n"
    finally:
        upstream.close()


async def _refusal(upstream: aiohttp.ClientResponse) -> ToqueError:
    """vLLM's error as one of ours."""
    try:
        content: Any = json.loads(await upstream.read())
        error = content.get("error", content)
        message, param = str(error.get("message", "")), error.get("param")
    except (ValueError, AttributeError, aiohttp.ClientError):
        message, param = "", None
    finally:
        upstream.release()
    if upstream.status == 404:
        return UnavailableError("The engine cannot load this model now.", code="model_not_loaded")
    if upstream.status < 500 and upstream.status not in (401, 403):
        too_long = "maximum context length" in message or "longer than the maximum model length" in message
        return InvalidRequestError(
            message or "The engine refused the request.",
            code="context_length_exceeded" if too_long else "invalid_value",
            param=param if isinstance(param, str) else None,
        )
    return UnavailableError("The engine failed on this request.", code="engine_error")


def _dumps(body: Any) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
