"""One completion on its way: to the engine that should answer it, and its bytes back as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.completions.event_stream import EventStream, usage_of
from app.completions.replicas import Replica, Replicas
from app.completions.schemas import SamplingParameters
from app.completions.vllm_client import MODEL_NOT_LOADED, broken_off
from app.core.errors import InvalidRequestError, ToqueError
from app.models.adapters.service import ServedModel

_CLIENT_GONE = 499
"""Nobody sees it but the metrics."""
_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class CompletionResponse(Response):
    """Asks an engine when it is sent, and passes on what it says.

    Its headers: `x-toque-model` is the model that answered, under its own name, `x-toque-replica` the engine,
    `x-toque-queue-ms` the time from the request's arrival until it was sent to that engine.
    """

    def __init__(
        self,
        replicas: Replicas,
        add_usage: Callable[[int, int], None],
        served: ServedModel,
        look_up_now: Callable[[], Awaitable[object]],
        project_id: str,
        path: str,
        body: SamplingParameters,
        arrived: float,
    ) -> None:
        super().__init__()
        self._replicas = replicas
        self._add_usage = add_usage
        self._served = served
        self._look_up_now = look_up_now
        self._path = path
        self._body = upstream_body(body, served.name, project_id)
        self._streams = bool(body.stream)
        self._hides_usage = not (body.stream_options and body.stream_options.include_usage)
        self._arrived = arrived
        self._has_started = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer; ends the engine's work as soon as the client is gone.

        Raises:
            UnavailableError: no engine is ready, or none answered.
            InvalidRequestError: the engine refused the request.
            FailedDependencyError: it refused the model, which is quarantined now.
        """
        try:
            async with asyncio.timeout(None) as presence:
                watch = asyncio.create_task(_watch(receive, presence))
                try:
                    await self._pass_on(send)
                finally:
                    watch.cancel()
        except TimeoutError:
            if not self._has_started:
                await send({"type": "http.response.start", "status": _CLIENT_GONE, "headers": []})
                await send({"type": "http.response.body"})

    async def _pass_on(self, send: Send) -> None:
        """Asks one replica, and if it gives not one byte, another."""
        served = self._served
        try:
            await self._replicas.ask(served.base_model, served.name, lambda replica: self._ask(replica, send))
        except ToqueError as error:
            reason = await self._reason(error)
            raise _about_the_same_replica(reason, error) from error

    async def _reason(self, error: ToqueError) -> ToqueError:
        """What to say where an engine has refused: perhaps its model was quarantined by that, or deleted."""
        is_refusal = isinstance(error, InvalidRequestError) or error.body.code == MODEL_NOT_LOADED
        if self._served.is_base or not is_refusal:
            return error
        try:
            await self._look_up_now()
        except ToqueError as verdict:
            return verdict
        except SQLAlchemyError:
            pass  # the engine's own words, then
        return error

    async def _ask(self, replica: Replica, send: Send) -> None:
        upstream: aiohttp.ClientResponse | None = None
        queued = time.perf_counter() - self._arrived
        try:
            async with replica.patience():
                upstream = await replica.connection.post(self._path, self._body)
                read = replica.connection.read_some if self._streams else replica.connection.read_all
                content = await read(upstream)
            replica.has_answered(self._served.name)
            headers = [
                (b"x-toque-model", self._served.name.encode()),
                (b"x-toque-replica", replica.id.encode()),
                (b"x-toque-queue-ms", b"%.1f" % (queued * 1000)),
            ]
            if self._streams:
                await self._send_stream(send, headers, upstream, content)
            else:
                await self._send_whole(send, headers, content)
        finally:
            if upstream is not None:
                upstream.close()  # where it has not ended, so does the engine's work

    async def _send_whole(self, send: Send, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        self._count(usage_in(content))
        await self._start(send, headers)
        await send({"type": "http.response.body", "body": content})

    async def _send_stream(
        self,
        send: Send,
        headers: list[tuple[bytes, bytes]],
        upstream: aiohttp.ClientResponse,
        content: bytes,
    ) -> None:
        events = EventStream(hide_usage=self._hides_usage)
        await self._start(send, headers + _STREAM_HEADERS)
        try:
            while content:
                if passed := events.forward(content):
                    await send({"type": "http.response.body", "body": passed, "more_body": True})
                content = await upstream.content.readany()
            last = events.rest
        except aiohttp.ClientError:  # too late for another replica, and for a status
            last = b"data: " + orjson.dumps({"error": broken_off().body.model_dump()}) + b"\n\n"
        finally:
            self._count(events.usage)
        await send({"type": "http.response.body", "body": last})

    async def _start(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._has_started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _count(self, usage: tuple[int, int] | None) -> None:
        self._add_usage(*(usage or (0, 0)))


def upstream_body(body: SamplingParameters, model: str, project_id: str) -> bytes:
    """The request as the engine gets it: what is allowed, and what clients have no say in."""
    ours: dict[str, Any] = {"model": model, "cache_salt": project_id}
    if body.stream:
        ours["stream_options"] = {"include_usage": True}
    allowed = body.model_dump_json(
        exclude={"model", "stream_options"}, exclude_unset=True, exclude_none=True, by_alias=True
    )
    return orjson.dumps(ours)[:-1] + b"," + allowed.encode()[1:]  # never empty: there is a prompt


def usage_in(content: bytes) -> tuple[int, int] | None:
    """Tokens in and out, as a whole answer states them."""
    try:
        return usage_of(orjson.loads(content))
    except orjson.JSONDecodeError:
        return None


def _about_the_same_replica(error: ToqueError, other: ToqueError) -> ToqueError:
    if (replica := other.headers.get("x-toque-replica")) is not None:
        error.headers["x-toque-replica"] = replica
    return error


async def _watch(receive: Receive, presence: asyncio.Timeout) -> None:
    """Ends `presence` when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    presence.reschedule(0)
