"""The response to a completion request: asks an engine, and forwards its bytes as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.completions.answers import EventStream
from app.completions.engine_refusals import MODEL_NOT_LOADED
from app.completions.generation_metrics import GenerationMetrics
from app.completions.replicas import Replica, Replicas
from app.completions.schemas import GatewayRequest
from app.core.errors import InvalidRequestError, ToqueError
from app.limits.rate_limiter import Admission, estimate_tokens
from app.models.adapters.served_models import ServedModel

_CLIENT_GONE = 499
"""nginx's status for a closed connection; only the metrics see it."""
_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class CompletionResponse(Response):
    """Asks an engine when it is sent, and forwards the answer.

    Its headers are `x-toque-model`, the model that answered under its own name; `x-toque-replica`, the
    engine; and `x-toque-queue-ms`, the time from the request's arrival until it was sent to that engine.
    """

    def __init__(
        self,
        replicas: Replicas,
        add_usage: Callable[[int, int], None],
        admission: Admission,
        served: ServedModel,
        placement_key: str,
        look_up_now: Callable[[], Awaitable[object]],
        body: GatewayRequest,
        content: bytes,
        arrived: float,
        metrics: GenerationMetrics,
    ) -> None:
        super().__init__()
        self._metrics = metrics
        self._replicas = replicas
        self._add_usage = add_usage
        self._admission = admission
        self._served = served
        self._key = placement_key
        self._look_up_now = look_up_now
        self._path = body.path
        self._body = content
        self._streams = bool(body.stream)
        self._answer = body.new_answer()
        self._arrived = arrived
        self._events = 0
        """Of a stream, how many came from the engine."""
        self._was_left = False
        """Whether the client left while an engine had its request, and so had computed some of it."""
        self._has_started = False
        self._first_token_seconds: float | None = None
        """From the request's arrival to the first byte of a stream."""
        self._is_computed = False
        """Whether the engine's work on a whole answer is done, and counts, even if its client leaves now."""

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer; stops the engine's work as soon as the client disconnects.

        Raises:
            UnavailableError: no engine is ready, or none answered.
            InvalidRequestError: the engine refused the request.
            FailedDependencyError: the engine refused the model, which is now quarantined.
        """
        try:
            async with asyncio.timeout(None) as connected:
                watch = asyncio.create_task(_watch_for_disconnect(receive, connected))
                try:
                    await self._forward(send)
                finally:
                    watch.cancel()
        except TimeoutError:
            if not self._has_started:
                await send({"type": "http.response.start", "status": _CLIENT_GONE, "headers": []})
                await send({"type": "http.response.body"})
        finally:
            await self._admission.settle(self._count_tokens())

    def _count_tokens(self) -> int:
        """Return how many tokens were used: by estimate if the engine was left before it said so."""
        if not (self._was_left or self._has_started or self._is_computed):
            return 0
        answer = self._answer
        return answer.prompt_tokens + answer.completion_tokens or estimate_tokens(self._body) + self._events

    async def _forward(self, send: Send) -> None:
        """Forwards the answer of one replica, or of another if the first sends nothing."""
        served = self._served
        try:
            await self._replicas.ask(served.base_model, self._key, lambda replica: self._ask(replica, send))
        except ToqueError as error:
            cause = await self._find_cause(error)
            cause.headers.update(self._admission.headers)
            raise _with_same_replica(cause, error) from error

    async def _find_cause(self, error: ToqueError) -> ToqueError:
        """Returns the error to report: a refused model may have been quarantined or deleted meanwhile."""
        is_refusal = isinstance(error, InvalidRequestError) or error.body.code == MODEL_NOT_LOADED
        if self._served.is_base or not is_refusal:
            return error
        try:
            await self._look_up_now()
        except ToqueError as cause:
            return cause
        except SQLAlchemyError:
            pass  # the engine's own error is all that is known
        return error

    async def _ask(self, replica: Replica, send: Send) -> None:
        upstream: aiohttp.ClientResponse | None = None
        queued = time.perf_counter() - self._arrived
        try:
            async with replica.awaiting_first_byte():
                upstream = await replica.connection.post(self._path, self._body)
                read = replica.connection.read_some if self._streams else replica.connection.read_all
                content = await read(upstream)
            headers = [
                (b"x-toque-model", self._served.name.encode()),
                (b"x-toque-replica", replica.id.encode()),
                (b"x-toque-queue-ms", b"%.1f" % (queued * 1000)),
                *((name.encode(), value.encode()) for name, value in self._admission.headers.items()),
            ]
            try:
                if self._streams:
                    is_whole = await self._send_stream(send, headers, upstream, content)
                    replica.is_in_doubt = replica.is_in_doubt or not is_whole
                else:
                    await self._send_whole(send, headers, content)
            finally:
                if self._has_started or self._is_computed:
                    self._count(queued)
        except asyncio.CancelledError:
            self._was_left = True
            raise
        finally:
            if upstream is not None:
                upstream.close()  # stops the engine's work on an unfinished answer

    def _count(self, queued: float) -> None:
        tokens = self._answer.prompt_tokens, self._answer.completion_tokens
        self._add_usage(*tokens)
        self._metrics.count_tokens(self._path, self._served.name, *tokens)
        self._metrics.observe(
            self._path,
            self._served.name,
            queue_seconds=queued,
            first_token_seconds=self._first_token_seconds,
            seconds=time.perf_counter() - self._arrived,
            output_tokens=tokens[1],
        )

    async def _send_whole(self, send: Send, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        shaped = self._answer.whole(content)
        self._is_computed = True
        whole = await self._answer.finish(shaped)
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(whole))]
        await self._start(send, headers)
        await send({"type": "http.response.body", "body": whole})

    async def _send_stream(
        self,
        send: Send,
        headers: list[tuple[bytes, bytes]],
        upstream: aiohttp.ClientResponse,
        received: bytes,
    ) -> bool:
        """Forwards the stream to its end, and returns whether the engine has ended it as it should."""
        events = EventStream(self._answer, self._body)
        passed = events.forward(received)  # before the response starts: another replica may still be asked
        await self._start(send, headers + _STREAM_HEADERS)
        self._first_token_seconds = time.perf_counter() - self._arrived
        while received and not events.is_broken:
            if events.has_ended:
                passed = await self._answer.finish(passed)
            if passed:
                await send({"type": "http.response.body", "body": passed, "more_body": True})
            try:
                received = await upstream.content.readany()
            except aiohttp.ClientError:
                received = b""
            self._events += received.count(b"data: ")
            passed = events.forward(received)
        if not events.has_ended:
            passed = events.break_off()
        last = await self._answer.finish(passed)
        await send({"type": "http.response.body", "body": last})
        return events.has_ended

    async def _start(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._has_started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def _with_same_replica(error: ToqueError, other: ToqueError) -> ToqueError:
    if (replica := other.headers.get("x-toque-replica")) is not None:
        error.headers["x-toque-replica"] = replica
    return error


async def _watch_for_disconnect(receive: Receive, connected: asyncio.Timeout) -> None:
    """Ends the `connected` timeout when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    connected.reschedule(0)
