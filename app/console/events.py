"""Server-sent events: a page hears that something has changed, and asks for that part of itself again.

`GET /console/events?watch=job:ftjob-…` sends the event `job:ftjob-…` at first, and whenever the fingerprint
of the topic `job` for that id changes. A process looks once for all pages that watch the same, about once a
second, and tells them one after another.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, cast

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session as DatabaseSession

from app.auth.roles import Action
from app.console.page import PageDep
from app.console.session import session_of
from app.context import Context
from app.core.database import DATABASE_AWAY, Database
from app.core.errors import AuthenticationError, InvalidRequestError, QuotaExceededError
from app.core.scope import IS_ENDLESS
from app.core.settings import Settings
from app.dependencies import caller_of
from app.storage.base import Storage

log = logging.getLogger("toque.console")

Fingerprint = Callable[[DatabaseSession, Context, str], str]
"""Returns a text that changes when the thing does, in a project and by what follows the topic's name."""

_SECONDS = 1.0
_MOST_SECONDS = 5.0
"""Between looks at what is watched, which are ten times as far apart as they take: slow ones are rare."""
_GAP_SECONDS = 0.1
"""Between two pages that are told of a change: what they ask for then takes 3 to 10 ms of the process's time,
which other callers would wait for if all asked at once."""
_KEEP_ALIVE_SECONDS = 15.0
"""In which proxies see that a connection is alive, and a session is looked at again."""
_MOST_WATCHED = 8
_MOST_PAGES = 100
"""Of one key in this process: each holds a connection, and makes the looks of all others longer."""
_LONGEST_WATCH = 200

PATH = "/console/events"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Topic:
    """What a page can watch."""

    fingerprint: Fingerprint
    action: Action


_TOPICS: dict[str, Topic] = {}


def topic(name: str, fingerprint: Fingerprint, action: Action = Action.READ) -> None:
    """Let pages watch something by `NAME` or `NAME:argument`.

    Args:
        name: the topic's name, which has no colon.
        fingerprint: one cheap query; its argument is empty for a topic without one.
        action: what a caller must be allowed to do.
    """
    _TOPICS[name] = Topic(fingerprint, action)


class Watch(NamedTuple):
    """A topic with its argument, in a project."""

    project_id: str
    name: str
    argument: str

    @property
    def event(self) -> str:
        """The event's name."""
        return f"{self.name}:{self.argument}" if self.argument else self.name


@dataclass(eq=False, slots=True)
class Watcher:
    """One page."""

    changed: dict[str, None] = field(default_factory=dict[str, None])
    """The events that it has not been sent yet, in their order."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, event: str) -> None:
        """Note that something has changed."""
        self.changed[event] = None
        self.woken.set()

    def take(self) -> list[str]:
        """Return the events that it has not been sent yet."""
        self.woken.clear()
        events, self.changed = list(self.changed), {}
        return events


@dataclass(slots=True)
class _Watched:
    watchers: set[Watcher] = field(default_factory=set[Watcher])
    fingerprint: str | None = None
    """None until it was looked at."""


class Watchers:
    """The pages that watch something in this process."""

    def __init__(self, database: Database, settings: Settings, storage: Storage) -> None:
        self._database = database
        self._settings = settings
        self._storage = storage
        self._watched: dict[Watch, _Watched] = {}
        self._pages: Counter[str] = Counter()
        """How many pages each key has open."""
        self._is_needed = asyncio.Event()

    @property
    def count(self) -> int:
        """How many things are watched."""
        return len(self._watched)

    async def run(self) -> None:
        """Look for changes, as long as anybody watches."""
        while True:
            await self._is_needed.wait()
            began = time.monotonic()
            fingerprints = await self._read_fingerprints()
            took = time.monotonic() - began
            next_look = began + took + min(max(_SECONDS, 10 * took), _MOST_SECONDS)
            await self._tell(fingerprints)
            await asyncio.sleep(next_look - time.monotonic())

    @contextmanager
    def counting(self, key_id: str) -> Generator[None]:
        """Count a page as one of its key's while a `with` block runs.

        Raises:
            QuotaExceededError: the key has too many already.
        """
        if self._pages[key_id] >= _MOST_PAGES:
            raise QuotaExceededError(
                f"This key has {_MOST_PAGES} pages open that follow what happens; close some of them, or "
                "sign in with keys of your own.",
                code="too_many_pages",
            )
        self._pages[key_id] += 1
        try:
            yield
        finally:
            self._pages[key_id] -= 1
            if not self._pages[key_id]:
                del self._pages[key_id]

    @contextmanager
    def watching(self, watches: list[Watch]) -> Generator[Watcher]:
        """Watch while a `with` block runs.

        A page is told of every topic once its fingerprint is known, and then asks for that part again: so it
        misses nothing that has changed since it was made, or changes while it asks.
        """
        watcher = Watcher()
        for watch in watches:
            watched = self._watched.setdefault(watch, _Watched())
            watched.watchers.add(watcher)
            if watched.fingerprint is not None:
                watcher.tell(watch.event)
        self._is_needed.set()
        try:
            yield watcher
        finally:
            for watch in set(watches):
                watched = self._watched[watch]
                watched.watchers.discard(watcher)
                if not watched.watchers:
                    del self._watched[watch]
            if not self._watched:
                self._is_needed.clear()

    async def _read_fingerprints(self) -> dict[Watch, str]:
        """Return the fingerprints of what is watched; of nothing if they cannot be read now."""
        try:
            return await to_thread.run_sync(self._look, list(self._watched))
        except DATABASE_AWAY:
            log.warning("the database cannot be read; pages are told of changes later")
        except Exception:  # pages that open later must still be told of changes
            log.exception("what pages watch cannot be read")
        return {}

    def _look(self, watches: list[Watch]) -> dict[Watch, str]:
        with self._database.reader() as session:
            return {
                watch: _TOPICS[watch.name].fingerprint(session, self._context(watch), watch.argument)
                for watch in watches
            }

    def _context(self, watch: Watch) -> Context:
        return Context(watch.project_id, self._settings, self._storage)

    async def _tell(self, fingerprints: dict[Watch, str]) -> None:
        for watch, fingerprint in fingerprints.items():
            watched = self._watched.get(watch)
            if watched is None or watched.fingerprint == fingerprint:
                continue
            watched.fingerprint = fingerprint
            for watcher in list(watched.watchers):
                watcher.tell(watch.event)
                await asyncio.sleep(_GAP_SECONDS)


async def _counted(request: Request) -> AsyncGenerator[None]:
    """Count a page until its response has ended."""
    watchers = cast("Watchers", request.app.state.watchers)
    with watchers.counting(caller_of(request.scope).key_id):
        yield


@router.get(PATH, dependencies=[Depends(_counted)])
async def stream_events(
    page: PageDep,
    request: Request,
    watch: Annotated[list[str], Query(min_length=1, max_length=_MOST_WATCHED)],
) -> StreamingResponse:
    """Tell a page what changes, until it leaves or its session ends."""
    watches = [_parse(page, each) for each in dict.fromkeys(watch)]
    request.scope[IS_ENDLESS] = True
    return StreamingResponse(
        _events(request, watches),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


def _parse(page: PageDep, text: str) -> Watch:
    name, _, argument = text.partition(":")
    found = _TOPICS.get(name)
    if found is None or len(text) > _LONGEST_WATCH or not text.isprintable():
        raise InvalidRequestError(
            f"There is nothing to watch by the name {name[:64]!r}.", code="invalid_value", param="watch"
        )
    page.check(found.action)
    return Watch(page.context.project_id, name, argument)


async def _events(request: Request, watches: list[Watch]) -> AsyncGenerator[str]:
    watchers = cast("Watchers", request.app.state.watchers)
    with watchers.watching(watches) as watcher:
        yield "retry: 1000\n\n"
        while await _is_signed_in(request):
            try:
                await asyncio.wait_for(watcher.woken.wait(), _KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"
            for event in watcher.take():
                yield f"event: {event}\ndata: changed\n\n"


async def _is_signed_in(request: Request) -> bool:
    try:
        return await session_of(request) is not None
    except AuthenticationError:
        return False
    except DATABASE_AWAY:
        return True
