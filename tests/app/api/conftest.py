"""Refusals that are held back for as long as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from app.api import refusal_pace


class Pace:
    """Who is refused too often waits until the test lets it go."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        """How long each of those that wait is to do so, in seconds."""
        self._may_go = Future[None]()

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.shield(asyncio.wrap_future(self._may_go))

    @contextmanager
    def held(self) -> Iterator[None]:
        """They wait until the block ends, at the latest."""
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        if not self._may_go.done():
            self._may_go.set_result(None)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    pace = Pace()
    monkeypatch.setattr(refusal_pace, "asyncio", SimpleNamespace(sleep=pace.sleep))
    return pace
