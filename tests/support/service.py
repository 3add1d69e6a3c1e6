"""The API, running in a thread of the test process, and the keys of its two projects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import uvicorn
from openai import OpenAI

from app.api.main import create_app
from app.core.settings import Settings
from tests.support.waiting import wait_until

BASE_MODEL = "smollm2-135m-instruct"
API_KEY = "sk-toque-first-project"
OTHER_KEY = "sk-toque-other-project"


@dataclass(frozen=True)
class Service:
    """The API, running; its base URL without `/v1`."""

    url: str

    def client(self, key: str = API_KEY) -> OpenAI:
        """The official client, which shows every failure at once."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def http(self, key: str | None = API_KEY) -> httpx2.Client:
        """A plain HTTP client."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30)


@contextmanager
def run_service(settings: Settings) -> Iterator[Service]:
    """Serves the app on a free port until the block ends."""
    config = uvicorn.Config(create_app(settings), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the API starts")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
