"""People who look at the console: python -m benchmarks.console.visitors URL PATH…

Each page is open in a browser of its own: it hears of changes by server-sent events, and asks for its parts
again as htmx and the page's script do. Signs in with the key of the environment. What was asked is printed as
JSON when a line is read.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from html.parser import HTMLParser

import aiohttp


class _Page(HTMLParser):
    """Notes where a page hears of changes, and what it asks for then."""

    def __init__(self) -> None:
        super().__init__()
        self.events: str | None = None
        self.parts: list[tuple[str, str]] = []
        """A trigger, and the path that is asked for then."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        found = dict(attrs)
        self.events = found.get("sse-connect") or self.events
        for trigger in (found.get("hx-trigger") or "").split(","):
            if trigger.strip().startswith("sse:") and (path := found.get("hx-get")):
                self.parts.append((trigger.strip().removeprefix("sse:"), path))


class _Visitor:
    """A browser with one page."""

    def __init__(self, session: aiohttp.ClientSession, url: str, path: str) -> None:
        self._session = session
        self._url = url
        self._path = path
        self._last_step: int | None = None
        self.asked = 0

    async def look(self) -> None:
        page = _Page()
        page.feed(await self._read(self._path))
        assert page.events, f"{self._path} hears of nothing"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(self._url + page.events, timeout=timeout) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"event: "):
                    await self._ask(page, line.decode()[7:].strip())

    async def _ask(self, page: _Page, event: str) -> None:
        for trigger, path in page.parts:
            if trigger == event:
                await self._read(path)
        if event.startswith("job:"):
            first = "" if self._last_step is None else f"&first={self._last_step + 1}"
            curves = json.loads(await self._read(f"{self._path}/curves?columns=500{first}"))
            self._last_step = curves["last_step"]

    async def _read(self, path: str) -> str:
        async with self._session.get(self._url + path) as answer:
            answer.raise_for_status()
            self.asked += 1
            return await answer.text()


async def _main(url: str, paths: list[str]) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"cookie": os.environ["TOQUE_BENCHMARK_COOKIE"]}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        visitors = [_Visitor(session, url, path) for path in paths]
        looking = [asyncio.create_task(each.look()) for each in visitors]
        reading = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        done, _ = await asyncio.wait([*looking, reading], return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
        assert reading in done, "a page's events have ended"
        for task in looking:
            task.cancel()
        print(json.dumps({each: visitor.asked for each, visitor in zip(paths, visitors, strict=True)}))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2:]))
