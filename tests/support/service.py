"""The API, running in a thread of the test process, and the keys of its two projects."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from socket import socket
from typing import Any

import httpx2
import uvicorn
from openai import OpenAI
from typing_extensions import override

from app.api.main import create_app
from app.core.settings import Settings
from tests.specification.watch import SpecificationWatch
from tests.support.waiting import wait_until

BASE_MODEL = "smollm2-135m-instruct"
API_KEY = "sk-toque-first-project"
OTHER_KEY = "sk-toque-other-project"


@dataclass(frozen=True)
class Service:
    """The API, running; its base URL without `/v1`."""

    url: str
    watch: SpecificationWatch
    """Holds every response against OpenAI's specification; what is not as it should be fails the test."""

    def client(self, key: str = API_KEY) -> OpenAI:
        """The official client, which shows every failure at once."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def http(self, key: str | None = API_KEY) -> httpx2.Client:
        """A plain HTTP client."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30)


class _Server(uvicorn.Server):
    """A server that stops when it is told to, rather than at its next look at `should_exit`."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.watch = SpecificationWatch(create_app(settings))
        super().__init__(
            uvicorn.Config(
                self.watch,
                port=port,
                http="app.api.http_protocol:HttpProtocol",
                limit_concurrency=settings.max_connections,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                ws="none",
            )
        )
        self.told_to_stop = asyncio.Event()

    @override
    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told_to_stop.wait()

    @override
    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop without uvicorn's pause of 0.1 s, which thousands of tests would take."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)
        await self._wait_tasks_to_complete()
        await self.lifespan.shutdown()


class _Loop:
    """An event loop in a thread of its own.

    All the services of a test session run in one, since a loop keeps its child processes: a check of a file
    then takes milliseconds, instead of the second in which a new process imports what it needs.
    """

    def __init__(self) -> None:
        started = Future[asyncio.AbstractEventLoop]()
        self._thread = threading.Thread(target=self._run, args=(started,), name="services")
        self._thread.start()
        self._loop = started.result()

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def wait() -> None:
            self._closed = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._closed.wait()

        with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
            runner.run(wait())

    def start(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.call(self._closed.set)
        self._thread.join()


_loop = cache(_Loop)


def close_loop() -> None:
    """End the event loop of the services, and its child processes, if any service has run."""
    if _loop.cache_info().currsize:
        _loop().close()
        _loop.cache_clear()


@contextmanager
def run_service(settings: Settings, port: int = 0) -> Iterator[Service]:
    """Serves the app on a free port, or on the given one, until the block ends."""
    server = _Server(settings, port)
    served = _loop().start(server.serve())
    try:
        wait_until(lambda: server.started or served.done(), "the API starts")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(f"http://127.0.0.1:{port}", server.watch)
    finally:
        _loop().call(server.told_to_stop.set)
        served.result()
    assert not server.watch.problems, "\n".join(server.watch.problems)
